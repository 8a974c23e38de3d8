/* The comparison of the tensors of a step with those of the last one, in one call for all of them.

   Reading type, dtype, device, shape, strides and address of a tensor takes a microsecond in
   Python, and 50 ns in C through the exchange API of DLPack, which needs no header of torch. This
   module is optional: PythonGuard in fused_optim/step/guards.py gives the same results, which the
   tests compare. It is used where there was no C compiler, where torch has no such API, or for
   tensors that DLPack does not describe in full. */

#include "snapshot.h"

#include <string.h>

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch((const void *)(address))
#else
#define PREFETCH(address) ((void)(address))
#endif

enum { AHEAD = 12 }; /* prefetch distance in facts: the memory has arrived by then */

/* Return 1 if the negative bit is set, which DLPack does not have; 0 if not; -1: exception. */
static int is_negative(Snapshot *self, PyObject *tensor)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(self->is_neg, tensor, NULL);
    if (answer == NULL) {
        return -1;
    }
    int negative = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return negative;
}

/* ---- One tensor. Return 1 if it is recorded or equal; 0 if it differs; -1: exception. */

static int refuse(const char *reason)
{
    PyErr_SetString(PyExc_ValueError, reason);
    return -1;
}

static int take_dims(Snapshot *self, const DLTensor *now)
{
    Py_ssize_t used = self->dims_used, ndim = now->ndim;
    if (used + 2 * ndim > self->dims_size) {
        Py_ssize_t size = 2 * (self->dims_size + ndim);
        int64_t *dims = PyMem_Realloc(self->dims, (size_t)size * sizeof(int64_t));
        if (dims == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->dims = dims;
        self->dims_size = size;
    }
    if (ndim > 0) {
        memcpy(self->dims + used, now->shape, (size_t)ndim * sizeof(int64_t));
        memcpy(self->dims + used + ndim, now->strides, (size_t)ndim * sizeof(int64_t));
    }
    self->dims_used = used + 2 * ndim;
    return 1;
}

static int take_tensor(Snapshot *self, Facts *facts, PyObject *tensor)
{
    DLTensor now;
    int known = PySequence_Contains(self->types, (PyObject *)Py_TYPE(tensor));
    if (known <= 0) {
        if (known == 0) {
            PyErr_Format(PyExc_ValueError, "a tensor is %R", (PyObject *)Py_TYPE(tensor));
        }
        return -1;
    }
    if (self->read(tensor, &now) != 0) {
        return -1;
    }
    if (now.dtype.code == DLPACK_COMPLEX) {
        return refuse("a tensor is complex, and DLPack does not have the conjugate bit");
    }
    if (now.ndim > 0 && (now.shape == NULL || now.strides == NULL)) {
        return refuse("a tensor comes without strides");
    }
    int negative = is_negative(self, tensor);
    if (negative != 0) {
        return negative < 0 ? -1 : refuse("a tensor has its negative bit set");
    }
    facts->address = (uint64_t)(uintptr_t)now.data + now.byte_offset;
    facts->type = Py_TYPE(tensor);
    facts->object = tensor;
    facts->shape = now.shape;
    facts->dims = self->dims_used;
    facts->dtype = now.dtype;
    facts->device = now.device;
    facts->ndim = now.ndim;
    facts->is_single = 1;
    for (int32_t i = 0; i < now.ndim; i++) {
        facts->is_single &= now.shape[i] <= 1;
    }
    return take_dims(self, &now);
}

static int same_layout(const Facts *facts, const DLTensor *now, const int64_t *dims)
{
    int32_t ndim = facts->ndim;
    if (now->ndim != ndim || memcmp(&now->dtype, &facts->dtype, sizeof now->dtype) != 0 ||
        memcmp(&now->device, &facts->device, sizeof now->device) != 0) {
        return 0;
    }
    if (ndim > 0 && now->strides == NULL) {
        return 0;
    }
    for (int32_t i = 0; i < ndim; i++) { /* ndim is small: a call of memcmp would take longer */
        if (now->shape[i] != dims[i] || now->strides[i] != dims[ndim + i]) {
            return 0;
        }
    }
    return 1;
}

/* Compare a tensor. If ``address`` is NULL, its address must be equal; else write it there. */
static int same_tensor(Snapshot *self, Facts *facts, PyObject *tensor, uint64_t *address)
{
    DLTensor now;
    if (Py_TYPE(tensor) != facts->type) {
        return 0;
    }
    if (self->read(tensor, &now) != 0) {
        PyErr_Clear(); /* such as a tensor that is sparse now, or has no memory */
        return 0;
    }
    uint64_t current = (uint64_t)(uintptr_t)now.data + now.byte_offset;
    if (!same_layout(facts, &now, self->dims + facts->dims) ||
        (address == NULL && current != facts->address)) {
        return 0;
    }
    /* The call costs more than all comparisons above, so it is made only where the bit may have
       changed: with another object of Python or of torch. A new gradient may reuse the memory of
       both objects of the last one; but autograd sets the bit for imaginary parts only, and of
       these only a single element has dense strides. */
    if ((address != NULL && facts->is_single) || facts->object != tensor ||
        facts->shape != now.shape) {
        int negative = is_negative(self, tensor);
        if (negative != 0) {
            return negative < 0 ? -1 : 0;
        }
        facts->object = tensor;
        facts->shape = now.shape;
    }
    if (address != NULL) {
        *address = current;
    }
    return 1;
}

/* ---- All tensors, to record or to compare them. The results are the same as above. */

static int look_at(Snapshot *self, Facts *facts, PyObject *tensor, uint64_t *address)
{
    if (!self->is_complete) {
        return take_tensor(self, facts, tensor);
    }
    /* Prefetch a later tensor while this one is read; the addresses may be invalid by now. Inline,
       because GCC removes calls of a function that only prefetches. */
    Py_ssize_t number = facts - self->facts + AHEAD;
    if (number < 2 * self->params + self->values) {
        const Facts *later = &self->facts[number];
        PREFETCH(later->object);
        PREFETCH(later->shape); /* and the fields of torch's object around it */
        PREFETCH((uintptr_t)later->shape - 64);
        PREFETCH((uintptr_t)later->shape + 64);
        PREFETCH((uintptr_t)later->shape + 128);
    }
    return same_tensor(self, facts, tensor, address);
}

/* Record or compare a parameter, and its gradient if it has one. */
static int look_at_param(Snapshot *self, Facts *own, PyObject *param, uint64_t *address)
{
    Facts *of_gradient = own + 1;
    PyObject *gradient = PyObject_GetAttr(param, self->grad);
    if (gradient == NULL) {
        return -1;
    }
    int same = 1;
    if (!self->is_complete) {
        own->object = param;
        self->gradients += gradient != Py_None;
    } else {
        same = own->object == param && (gradient != Py_None) == (of_gradient->type != NULL);
    }
    if (same == 1 && gradient != Py_None) {
        same = look_at(self, own, param, NULL);
        same = same == 1 ? look_at(self, of_gradient, gradient, address) : same;
    }
    Py_DECREF(gradient);
    return same;
}

/* Record or compare all parameters; write the addresses of their gradients to ``addresses``. */
static int look_at_params(Snapshot *self, PyObject *params, uint64_t *addresses)
{
    int same = PyList_Size(params) == self->params;
    for (Py_ssize_t i = 0; same == 1 && i < self->params; i++) {
        Facts *own = &self->facts[2 * i];
        PyObject *param = PyList_GetItem(params, i);
        same = param == NULL ? -1 : look_at_param(self, own, param, addresses);
        addresses += self->is_complete && own[1].type != NULL;
    }
    return same;
}

static int look_at_value(Snapshot *self, Facts *facts, PyObject *name, PyObject *value)
{
    int same = 1;
    Py_INCREF(name); /* the calls below may change the dict */
    Py_INCREF(value);
    if (!self->is_complete) {
        Py_INCREF(name);
        facts->name = name;
    } else if (name != facts->name) {
        same = PyObject_RichCompareBool(name, facts->name, Py_EQ);
    }
    same = same == 1 ? look_at(self, facts, value, NULL) : same;
    Py_DECREF(name);
    Py_DECREF(value);
    return same;
}

/* Record or compare one entry of the state, whose first value has the index ``number``. */
static int look_at_entry(Snapshot *self, Entry *entry, PyObject *own, Py_ssize_t number)
{
    Py_ssize_t position = 0, count = 0;
    Facts *facts = &self->facts[2 * self->params + number];
    PyObject *name, *value;
    if (!self->is_complete) {
        entry->count = PyDict_Size(own);
    }
    int same = PyDict_CheckExact(own) && PyDict_Size(own) == entry->count &&
               number + entry->count <= self->values;
    while (same == 1 && count < entry->count && PyDict_Next(own, &position, &name, &value)) {
        same = look_at_value(self, &facts[count], name, value);
        count++;
    }
    return same == 1 ? count == entry->count : same;
}

static int look_at_state(Snapshot *self, PyObject *state)
{
    Py_ssize_t position = 0, count = 0, number = 0;
    PyObject *key, *own;
    int same = PyDict_Size(state) == self->entries;
    while (same == 1 && count < self->entries && PyDict_Next(state, &position, &key, &own)) {
        Entry *entry = &self->state[count];
        if (!self->is_complete) {
            entry->key = key;
        }
        Py_INCREF(own);
        same = key == entry->key ? look_at_entry(self, entry, own, number) : 0;
        Py_DECREF(own);
        number += entry->count;
        count++;
    }
    return same == 1 ? count == self->entries : same;
}

int snapshot_take(Snapshot *self, PyObject *params, PyObject *state)
{
    Py_ssize_t position = 0;
    PyObject *key, *own;
    self->params = PyList_Size(params);
    self->entries = PyDict_Size(state);
    while (PyDict_Next(state, &position, &key, &own)) {
        if (!PyDict_CheckExact(own)) {
            return refuse("an entry of the state is no dict");
        }
        self->values += PyDict_Size(own);
    }
    size_t count = (size_t)(2 * self->params + self->values);
    self->facts = PyMem_Calloc(count + 1, sizeof(Facts)); /* + 1: for 0 bytes it may be NULL */
    self->state = PyMem_Calloc((size_t)self->entries + 1, sizeof(Entry));
    if (self->facts == NULL || self->state == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int taken = look_at_params(self, params, NULL);
    taken = taken == 1 ? look_at_state(self, state) : taken;
    if (taken == 0) {
        return refuse("the parameters or the state changed meanwhile");
    }
    self->is_complete = 1;
    return taken == 1 ? 0 : -1;
}

int snapshot_compare(Snapshot *self, PyObject *params, PyObject *state, uint64_t *addresses)
{
    int same = look_at_params(self, params, addresses);
    return same == 1 ? look_at_state(self, state) : same;
}
