/* Declarations of both stubs, of libcuda.so.1 and of libamdhip64.so; library.py has their
   counterparts. Devices are numbered from 0 to DEVICES - 1. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What Triton's launcher hands over. */
typedef struct {
  uint64_t function, stream;
  int32_t current_device;  /* of the thread that launches; -1 if it has none */
  int32_t function_device; /* the device that was current when the function was loaded */
  uint32_t grid[3], block[3];
  uint32_t shared;     /* bytes */
  uint32_t attributes; /* how many launch attributes there are */
  void **parameters;   /* the address of each argument; only the kernel knows how many and how wide */
} launch_t;

/* Takes a launch; returns 0, or 1 after writing the reason of the failure to its last argument. */
typedef int (*receiver_t)(const launch_t *, char *);

#define REASON_SIZE 800 /* Triton has 1024 bytes for its prefix and this */

static receiver_t receiver;
static char reason[REASON_SIZE];
static _Thread_local int current_device = -1;

/* The handle of a module, and of its function: where it was loaded. */
typedef struct {
  int device;
} loaded_t;

void stub_set_receiver(receiver_t to) { receiver = to; }
void stub_set_device(int device) { current_device = device; }
int stub_get_device(void) { return current_device; }

static loaded_t *loaded_on(int device) {
  loaded_t *found = malloc(sizeof(loaded_t));
  found->device = device;
  return found;
}

/* Whether memory begins like a cubin or an AMD code object. */
static int is_elf(const void *image) { return memcmp(image, "\177ELF", 4) == 0; }
