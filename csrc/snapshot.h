/* The record of the tensors of a step, and the part of DLPack that it uses. */

#ifndef FUSED_OPTIM_SNAPSHOT_H
#define FUSED_OPTIM_SNAPSHOT_H

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* ---- The structures of DLPack 1 that are read here. */

enum { DLPACK_MAJOR = 1, DLPACK_COMPLEX = 5 };

typedef struct {
    uint32_t major, minor;
} DLVersion;

typedef struct {
    int32_t type, index;
} DLDevice;

typedef struct {
    uint8_t code, bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} DLTensor;

typedef int (*ReadTensor)(void *object, DLTensor *out);

typedef struct ExchangeAPI {
    DLVersion version;
    struct ExchangeAPI *older; /* for a consumer of an older major version */
    void (*managed_tensor_allocator)(void);
    void (*managed_tensor_from_py_object_no_sync)(void);
    void (*managed_tensor_to_py_object_no_sync)(void);
    ReadTensor dltensor_from_py_object_no_sync; /* may be NULL */
    void (*current_work_stream)(void);
} ExchangeAPI;

/* ---- The record of the last step: no reference to a tensor, no pointer is dereferenced. */

typedef struct {
    uint64_t address;
    PyTypeObject *type; /* NULL for a parameter without a gradient, and for a missing gradient */
    const void *object; /* the Python object at the last comparison */
    const void *shape;  /* address of the sizes, in torch's object, at the last comparison */
    PyObject *name;     /* key of a value of the state, a strong reference; NULL for others */
    Py_ssize_t dims;    /* index into Snapshot.dims of the sizes, which the strides follow */
    DLDataType dtype;
    DLDevice device;
    int32_t ndim;
    int32_t is_single; /* 1 if there is at most one element */
} Facts;

typedef struct {
    const void *key;
    Py_ssize_t count;
} Entry; /* an entry of the state: its parameter, and the number of its values */

typedef struct {
    PyObject_HEAD
    ReadTensor read;
    PyObject *is_neg;  /* torch.Tensor.is_neg */
    PyObject *types;   /* tuple of the types that may be read */
    PyObject *grad;    /* the string "grad" */
    int is_complete;   /* 0 while facts are recorded, then 1: tensors are compared */
    Py_ssize_t params, gradients, entries, values, dims_used, dims_size;
    Facts *facts;      /* each parameter followed by its gradient, then the values of the state */
    Entry *state;
    int64_t *dims;
} Snapshot;

/* Fill a snapshot whose record is all zeros; return 0, or -1 with an exception. */
int snapshot_take(Snapshot *self, PyObject *params, PyObject *state);

/* Return 1 if nothing but gradient addresses differs, and write these; 0 if not; -1: exception. */
int snapshot_compare(Snapshot *self, PyObject *params, PyObject *state, uint64_t *addresses);

#endif
