/* What a snapshot of the tensors of a step is, and the part of DLPack that it needs. */

#ifndef FUSED_OPTIM_SNAPSHOT_H
#define FUSED_OPTIM_SNAPSHOT_H

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* ---- The layouts of DLPack 1, as far as they are read here. */

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

/* ---- What is kept of the last step: no reference to a tensor, and no address is followed. */

typedef struct {
    uint64_t address;
    PyTypeObject *type; /* NULL: of a parameter without a gradient, or of what is not there */
    const void *object; /* the Python object at the last look */
    const void *shape;  /* where torch had the sizes at the last look: in its own object */
    PyObject *name;     /* of a value of the state, a reference; NULL for other tensors */
    Py_ssize_t dims;    /* where in Snapshot.dims: the sizes, then the strides */
    DLDataType dtype;
    DLDevice device;
    int32_t ndim;
    int32_t is_single; /* whether there is at most one element */
} Facts;

typedef struct {
    const void *key;
    Py_ssize_t count;
} Entry; /* of the state: a parameter, and how many values it has */

typedef struct {
    PyObject_HEAD
    ReadTensor read;
    PyObject *is_neg;  /* torch.Tensor.is_neg */
    PyObject *types;   /* tuple of the types that may be read */
    PyObject *grad;    /* the name */
    int is_complete;   /* 0 while the facts are taken; then tensors are compared with them */
    Py_ssize_t params, gradients, entries, values, dims_used, dims_size;
    Facts *facts;      /* of each parameter and its gradient in turn, then of the state's values */
    Entry *state;
    int64_t *dims;
} Snapshot;

/* Fill a snapshot that is all zeros but for what it is read with: 0, or -1 with an exception. */
int snapshot_take(Snapshot *self, PyObject *params, PyObject *state);

/* Return 1 if all is as it was, and write where the gradients are; 0 if not; -1: exception. */
int snapshot_compare(Snapshot *self, PyObject *params, PyObject *state, uint64_t *addresses);

#endif
