/* The Python module fused_optim._host with the type Snapshot. */

#include "snapshot.h"

static ReadTensor find_reader(PyObject *capsule)
{
    ExchangeAPI *api = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (api == NULL) {
        return NULL;
    }
    while (api != NULL && api->version.major != DLPACK_MAJOR) {
        api = api->older;
    }
    if (api == NULL || api->dltensor_from_py_object_no_sync == NULL) {
        PyErr_SetString(PyExc_ValueError, "torch has no reader of tensors by DLPack 1");
        return NULL;
    }
    return api->dltensor_from_py_object_no_sync;
}

static void snapshot_dealloc(PyObject *object)
{
    Snapshot *self = (Snapshot *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    for (Py_ssize_t i = 0; self->facts != NULL && i < self->values; i++) {
        Py_XDECREF(self->facts[2 * self->params + i].name);
    }
    Py_XDECREF(self->is_neg);
    Py_XDECREF(self->types);
    Py_XDECREF(self->grad);
    PyMem_Free(self->facts);
    PyMem_Free(self->state);
    PyMem_Free(self->dims);
    release(object);
    Py_DECREF(type);
}

static PyObject *snapshot_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    char *names[] = {"", "", "", "", "", NULL}; /* by position only */
    PyObject *capsule, *is_neg, *types, *params, *state;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO!O!O!", names, &capsule, &is_neg,
                                     &PyTuple_Type, &types, &PyList_Type, &params, &PyDict_Type,
                                     &state)) {
        return NULL;
    }
    ReadTensor read = find_reader(capsule);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Snapshot *self = read == NULL ? NULL : (Snapshot *)allocate(type, 0); /* all zeros */
    if (self == NULL) {
        return NULL;
    }
    Py_INCREF(is_neg);
    Py_INCREF(types);
    self->read = read;
    self->is_neg = is_neg;
    self->types = types;
    self->grad = PyUnicode_InternFromString("grad");
    if (self->grad == NULL || snapshot_take(self, params, state) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *snapshot_check(PyObject *object, PyObject *args)
{
    Snapshot *self = (Snapshot *)object;
    PyObject *params, *state;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &params, &PyDict_Type, &state)) {
        return NULL;
    }
    Py_ssize_t size = self->gradients * (Py_ssize_t)sizeof(uint64_t);
    PyObject *addresses = PyBytes_FromStringAndSize(NULL, size);
    if (addresses == NULL) {
        return NULL;
    }
    uint64_t *out = (uint64_t *)(void *)PyBytes_AsString(addresses);
    int same = snapshot_compare(self, params, state, out);
    if (same == 1) {
        return addresses;
    }
    Py_DECREF(addresses);
    if (same == 0) {
        Py_INCREF(Py_None);
    }
    return same == 0 ? Py_None : NULL;
}

static PyMethodDef snapshot_methods[] = {
    {"check", snapshot_check, METH_VARARGS,
     "check(params, state): Return the addresses of the gradients, uint64 each, if nothing else "
     "differs from the record; else None."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot snapshot_slots[] = {
    {Py_tp_doc,
     "Snapshot(exchange_api, is_neg, types, params, state): A record of the tensors of a step.\n\n"
     "Raises ValueError, RuntimeError or BufferError if a tensor is of none of the types or "
     "complex, or if DLPack does not describe it."},
    {Py_tp_new, snapshot_new},
    {Py_tp_dealloc, snapshot_dealloc},
    {Py_tp_methods, snapshot_methods},
    {0, NULL},
};

static PyType_Spec snapshot_spec = {
    "fused_optim._host.Snapshot", sizeof(Snapshot), 0, Py_TPFLAGS_DEFAULT, snapshot_slots,
};

static int add_type(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&snapshot_spec);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, "Snapshot", type);
    Py_XDECREF(type);
    return result;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, add_type},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_host", "Comparison of a step's tensors with those of the last one.",
    0, NULL, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__host(void)
{
    return PyModuleDef_Init(&module_definition);
}
