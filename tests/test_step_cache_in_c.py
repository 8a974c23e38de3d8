"""The C module's errors, references, memory, DLPack versions and log.

Faults tried by hand, in csrc/: an exception left set after a tensor that cannot be read; a
reference too many and one too few to a gradient, to a name and to the types; no look at the
version; a size of the state that is not looked at again.
"""

import contextlib
import ctypes
import gc
import logging
import sys
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.c_module import NEEDS_C_MODULE
from helpers.models import KERNELS
from helpers.step_cache_pair import CachePair
from helpers.step_inputs import EVENTS, Own, StepInputs
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.torch_version import TorchVersion

from fused_optim import SGD
from fused_optim.private_api import dlpack_exchange_api, find
from fused_optim.step import guards

pytestmark = NEEDS_C_MODULE


class Broken(TorchFunctionMode):
    """A mode that calls ``action`` whenever an attribute of a tensor is read."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.action()
        return function(*args, **(kwargs or {}))


def fail():
    raise OSError("stop")


def test_an_error_passes_through():
    inputs = StepInputs()
    guard = guards.HostGuard(inputs.groups, inputs.state)
    with Broken(fail), pytest.raises(OSError, match="stop"):
        guard.check(inputs.groups, inputs.state)
    assert guard.check(inputs.groups, inputs.state) is not None
    with Broken(fail), pytest.raises(OSError, match="stop"):
        guards.HostGuard(inputs.groups, inputs.state)


@pytest.mark.parametrize("complete", [False, True])
def test_what_changes_meanwhile_does_no_harm(complete):
    """Guard against user code that runs while gradients are read, and changes everything."""
    inputs = StepInputs()
    calls, last = [], 3 if complete else 12  # the first 8 of 12 are made in Python
    if complete:
        guard = guards.HostGuard(inputs.groups, inputs.state)

    def empty():
        calls.append(0)
        if len(calls) == last:
            inputs.state.clear()
            for group in inputs.groups:
                group["params"].clear()

    with Broken(empty):
        if complete:
            assert guard.check(inputs.groups, inputs.state) is None
        else:
            with pytest.raises(ValueError, match="meanwhile"):
                guards.HostGuard(inputs.groups, inputs.state)
    assert len(calls) >= last


def references(inputs):
    """Return the reference counts of all objects that the inputs alone hold."""
    entries = list(inputs.state.values())
    own = [v for entry in entries for v in (entry, *entry.values())]
    grads = [param.grad for param in inputs.params if param.grad is not None]
    names = [name for entry in entries for name in entry if name.startswith("a ")]
    return list(map(sys.getrefcount, [*inputs.params, *grads, *own, *names, inputs.state]))


def shared_references():
    """Return the reference counts of objects that others hold too."""
    own = find("fused_optim._host", "Snapshot"), sys.intern("grad")
    return list(map(sys.getrefcount, [None, guards.READABLE, Tensor.is_neg, *own]))


def refuse(inputs, value, reason):
    """Check that a state tensor is refused with a reason."""
    inputs.state[inputs.params[0]]["more"] = value
    with pytest.raises(ValueError, match=reason):
        guards.HostGuard(inputs.groups, inputs.state)
    del inputs.state[inputs.params[0]]["more"]


def test_no_reference_is_left_or_lost():
    """Guard against reference leaks of comparisons that succeed or fail."""
    inputs = StepInputs()
    for i, entry in enumerate(inputs.state.values()):
        entry[f"a {i}"] = torch.ones(2)
    gc.collect()
    before = references(inputs)
    for _ in range(3):
        guard = guards.HostGuard(inputs.groups, inputs.state)
        assert guard.check(inputs.groups, inputs.state) is not None
        for event in EVENTS.values():
            other = StepInputs(1)
            unlike = guards.HostGuard(other.groups, other.state)
            with contextlib.suppress(RuntimeError):
                event[0](other)
            unlike.check(other.groups, other.state)
        with Broken(fail), pytest.raises(OSError, match="stop"):
            guard.check(inputs.groups, inputs.state)
        refuse(inputs, Own(torch.ones(2)), "step_inputs.Own")
        refuse(inputs, torch.ones(2, dtype=torch.complex64), "complex")
        refuse(inputs, torch._neg_view(torch.ones(2)), "negative")
    del guard, unlike, other
    gc.collect()
    assert references(inputs) == before


def test_no_memory_is_left():
    """Guard against leaked Python memory, an object for each comparison."""
    inputs, shorter, meta = StepInputs(), StepInputs(), StepInputs()
    pairs = [(w, guards.HostGuard(w.groups, w.state)) for w in (inputs, shorter, meta)]
    shorter.groups[1]["params"].pop()
    meta.state[meta.params[0]]["step"] = torch.tensor(1.0, device="meta")
    blocks, shared, count = [], shared_references(), 100
    for _ in range(4):
        for _ in range(count):
            for own, guard in pairs:
                guard.check(own.groups, own.state)
            guards.HostGuard(inputs.groups, inputs.state)
        for _ in range(count):
            with Broken(fail), contextlib.suppress(OSError):
                pairs[0][1].check(inputs.groups, inputs.state)
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert min(after - before for before, after in pairwise(blocks)) < count / 2
    # 8 times as often None was returned, 4 times as many snapshots were made
    assert max(map(abs, map(int.__sub__, shared_references(), shared))) < count


def test_the_answer_to_a_question_is_not_kept():
    from fused_optim._host import Snapshot

    inputs, answer = StepInputs(), []
    arguments = inputs.params, dict(inputs.state)
    before = sys.getrefcount(answer)
    guard = Snapshot(dlpack_exchange_api(), lambda tensor: answer, guards.READABLE, *arguments)
    assert guard.check(*arguments) is not None
    assert sys.getrefcount(answer) == before
    answer.append("negative")
    assert guard.check(*arguments) is None


def test_no_tensor_is_kept_alive():
    inputs = StepInputs()
    guard = guards.HostGuard(inputs.groups, inputs.state)
    assert guard.check(inputs.groups, inputs.state) is not None
    tensors = [t for p in inputs.params for t in (p, p.grad, *inputs.state[p].values())]
    seen = [weakref.ref(tensor) for tensor in tensors if tensor is not None]
    del tensors
    inputs.groups.clear()
    inputs.state.clear()
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)


class DLTensor(ctypes.Structure):
    """The struct of DLPack."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class ExchangeAPI(ctypes.Structure):
    """The struct of DLPack."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 5),
    ]


def capsule(api, name=b"dlpack_exchange_api"):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    return new(ctypes.addressof(api), name, None)


def real_api():
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ExchangeAPI.from_address(get(Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api"))


def test_the_version_of_the_api_is_heeded():
    """Guard against another major version, which may have other layouts."""
    from fused_optim._host import Snapshot

    real, inputs = real_api(), StepInputs()
    assert real.major == 1
    arguments = (Tensor.is_neg, guards.READABLE, inputs.params, dict(inputs.state))

    def snapshot(api, *name):
        return Snapshot(capsule(api, *name), *arguments)

    newer = ExchangeAPI(2, 0, ctypes.addressof(real), (ctypes.c_void_p * 5)())
    expected = snapshot(real).check(*arguments[2:])
    assert snapshot(newer).check(*arguments[2:]) == expected
    assert len(expected) == 8 * sum(param.grad is not None for param in inputs.params)
    with pytest.raises(ValueError, match="DLPack 1"):
        snapshot(ExchangeAPI(2, 0, None, real.functions))
    with pytest.raises(ValueError, match="DLPack 1"):
        snapshot(ExchangeAPI(1, 0, None, (ctypes.c_void_p * 5)()))
    with pytest.raises(ValueError, match="PyCapsule"):
        snapshot(real, b"another name")
    for params in ([], inputs.params[1:], [*inputs.params, inputs.params[0]]):
        assert snapshot(real).check(params, arguments[3]) is None
    for wrong in (((), {}), ([], [])):
        with pytest.raises(TypeError):
            Snapshot(capsule(real), *arguments[:2], *wrong)
        with pytest.raises(TypeError):
            snapshot(real).check(*wrong)


READER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
OTHERS = {
    "as it is": ({}, True),
    "device_type": ({"device_type": 2}, False),
    "device_index": ({"device_index": 1}, False),
    "strides": ({"strides": None}, False),
    "byte_offset": ({"byte_offset": 8}, False),
}


class Reader:
    """An exchange API whose reader changes torch's result by ``change(out)``."""

    def __init__(self, change):
        real = real_api()
        read = READER(real.functions[3])

        def changed(tensor, out):
            result = read(tensor, out)
            change(out.contents)
            return result

        self.reader = READER(changed)
        self.api = ExchangeAPI(1, 0, None, real.functions)
        self.api.functions[3] = ctypes.cast(self.reader, ctypes.c_void_p).value

    def snapshot(self, *arguments):
        from fused_optim._host import Snapshot

        return Snapshot(capsule(self.api), Tensor.is_neg, guards.READABLE, *arguments)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("at_first", [False, True])
def test_what_this_machine_does_not_have(name, at_first):
    """Guard against tensors of other devices and of other producers of DLPack."""
    fields, same = OTHERS[name]
    inputs, changed = StepInputs(shapes=[(4,)]), [at_first]

    def change(out):
        for field, value in fields.items() if changed[0] else ():
            setattr(out, field, value)

    reader, arguments = Reader(change), (inputs.params, dict(inputs.state))
    if at_first and name == "strides":
        with pytest.raises(ValueError, match="strides"):
            reader.snapshot(*arguments)
        return
    guard = reader.snapshot(*arguments)
    shift = 8 if at_first and name == "byte_offset" else 0
    address = inputs.params[0].grad.data_ptr() + shift
    assert np.frombuffer(guard.check(*arguments), np.int64).tolist() == [address]
    changed[0] = not at_first
    assert (guard.check(*arguments) is not None) == same


def test_a_gradient_that_turns_negative_in_place_of_the_last():
    """Guard against a negative bit missed at the same address.

    So may the objects of Python and of torch; here they are the same ones.
    """
    number = Parameter(torch.ones(1))
    number.grad = torch.complex(torch.ones(1), torch.ones(1)).imag
    guard = guards.HostGuard([{"params": [number]}], {})
    for negative in (False, True, False, True):
        value = torch.complex(torch.ones(1), torch.ones(1))
        number.grad.data = (value.conj() if negative else value).imag
        assert number.grad.is_neg() == negative
        assert (guard.check([{"params": [number]}], {}) is None) == negative


def lines(caplog):
    return [r.message for r in caplog.records if "tensors of a step" in r.message]


def test_which_way_a_step_reads_is_logged(caplog):
    caplog.set_level(logging.DEBUG, "fused_optim")
    CachePair("fp32", "reference").step()
    assert set(lines(caplog)) == {"the tensors of a step are compared in C"}


NOT_IN_C = {
    "no module": ("fused_optim._host", "import of fused_optim._host halted"),
    "no API": (None, "has no exchange API"),
    "an API of others": ("2.9.1", "torch 2.9.1 has no exchange API"),
    "complex": (torch.complex64, "is complex"),
    "subclass": (Own, "step_inputs.Own"),
    "meta": ("meta", "meta"),
}


@pytest.mark.parametrize("case", NOT_IN_C)
def test_the_reason_not_to_read_in_c_is_logged(case, caplog, monkeypatch):
    how, reason = NOT_IN_C[case]
    caplog.set_level(logging.DEBUG, "fused_optim")
    param = Parameter(torch.ones(4))
    if case == "no module":
        monkeypatch.setitem(sys.modules, how, None)
    elif case == "no API":
        monkeypatch.setattr(Tensor, "__dlpack_c_exchange_api__", how)
    elif case == "an API of others":
        monkeypatch.setattr(torch, "__version__", TorchVersion(how))
    elif case == "complex":
        param = Parameter(torch.ones(4, dtype=how))
    elif case == "subclass":
        param = torch.ones(4).as_subclass(Own).requires_grad_()
    else:
        param = Parameter(torch.ones(4, device=how))
    optimizer = SGD([param], momentum=0.9, backend="reference" if case == "meta" else KERNELS)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert len(lines(caplog)) == 1, "the second step went on from the first"
    assert lines(caplog)[0].startswith("the tensors of a step are compared in Python: ")
    assert reason in lines(caplog)[0]
