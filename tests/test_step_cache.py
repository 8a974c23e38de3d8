"""The cached step: the changes that it survives, and those that end it.

Every event happens to two optimizers. One uses its cached step where it can, the other takes a full
step always; they must have the same bits. Faults tried by hand: each comparison in fused_optim/step
left out. The guards in C and in Python are compared in test_guards.py.
"""

import copy
import gc
import pickle
import sys
import weakref
from itertools import pairwise
from unittest import mock

import pytest
import torch
from helpers.models import BACKENDS, KERNELS, parameters, set_grads, values
from helpers.mutations import EVENTS, params_of
from helpers.step_cache_pair import SHAPES, CachePair
from helpers.versions import NEEDS_GRAD_DTYPE, PROFILER_WARNS
from torch.nn import Parameter

from benchmarks.allocation import tensor_allocations
from fused_optim import SGD, AdamW
from fused_optim.backends.base import CompileError
from fused_optim.step import guards
from fused_optim.step.engine import StepEngine

# the formats are the same to either backend
RUNS = [("fp32", "reference"), ("fp32", KERNELS), ("formats", "reference")]


@pytest.fixture
def full(monkeypatch):
    """Record the optimizers that take a full step, one entry a step."""
    steps = []
    original = StepEngine._full_step

    def spy(self, optimizer, amp_state):
        steps.append(optimizer)
        return original(self, optimizer, amp_state)

    monkeypatch.setattr(StepEngine, "_full_step", spy)
    return steps


@pytest.mark.parametrize(("setup", "backend"), RUNS)
@pytest.mark.parametrize("event", EVENTS)
def test_a_change_is_seen(event, setup, backend, full):
    """Guard against changes that the cached step ignores."""
    pair = CachePair(setup, backend)
    change, goes_on = EVENTS[event]
    for _ in range(2):
        pair.step()
    assert full.count(pair.optimizers[0]) == 1
    for optimizer in pair.optimizers:
        before = copy.copy(optimizer.state)  # so that no address is given out again
        change(optimizer)
        for param in params_of(optimizer):
            if not param.requires_grad:
                param.grad = None
    full.clear()
    pair.step()
    del before
    # another backend is none where it is the same
    assert (pair.optimizers[0] not in full) == (goes_on or event == backend)
    pair.step()


GRADIENTS = {
    "in place": (lambda param, seed: param.grad.fill_(seed), True),
    "at a new address": (lambda param, seed: param.grad.clone() * seed, True),
    "misaligned": (
        lambda param, seed: torch.cat([param.grad.flatten()[:1], param.grad.flatten()])[1:].view(
            param.shape
        ),
        False,
    ),
    "strided": (lambda param, seed: param.grad.t().contiguous().t(), False),
    "smaller strides": (lambda param, seed: param.grad[:1].expand(param.shape), False),
}


@pytest.mark.parametrize(("setup", "backend"), RUNS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_another_gradient_is_seen(name, setup, backend, full):
    """Guard against gradients with other addresses or strides, of one parameter and of all."""
    pair = CachePair(setup, backend)
    change, goes_on = GRADIENTS[name]
    pair.step()
    pair.step()
    for places in ([1], [1, 3]):
        full.clear()
        for optimizer in pair.optimizers:
            for i in places:
                param = params_of(optimizer)[i]
                param.grad = change(param, 2.0)
        pair.step(new_grads=False)
        assert (pair.optimizers[0] not in full) == goes_on
        pair.step(new_grads=False)  # from such a gradient to such a gradient
        pair.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_comes_and_goes(backend, full):
    pair = CachePair("fp32", backend)
    last = None
    for absent in ([], [1], [1], [], [0, 2], [0, 2], [1, 2]):
        full.clear()
        for optimizer in pair.optimizers:
            for i, param in enumerate(params_of(optimizer)):
                param.requires_grad_(i not in absent)
                param.grad = None
        pair.step()
        assert (pair.optimizers[0] not in full) == (absent == last)
        last = absent


@NEEDS_GRAD_DTYPE
def test_a_gradient_of_another_dtype(full):
    pair = CachePair("fp32", KERNELS)
    pair.step()
    for optimizer in pair.optimizers:
        param = params_of(optimizer)[2]
        param.grad = None
        param.grad_dtype = torch.bfloat16
        param.grad = torch.ones(param.shape, dtype=torch.bfloat16)
    full.clear()
    pair.step(new_grads=False)
    assert pair.optimizers[0] in full


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused_as_ever(backend):
    """Guard against another shape at the same address, which a kernel would not notice."""
    pair = CachePair("fp32", backend)
    pair.step()
    (optimizer, _), small = pair.optimizers, torch.zeros(20)
    param = params_of(optimizer)[0]
    state = optimizer.state[param]
    whole = state["exp_avg"]
    state["exp_avg"] = whole[:20]
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.step()
    state["exp_avg"] = whole
    optimizer.step()
    param.data = param.data[:20]
    with pytest.raises(ValueError, match="gradient"):
        optimizer.step()
    param.grad = small
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.step()


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_independent(travel):
    """Guard against a copy that writes to the memory of the original."""
    pair = CachePair("fp32", KERNELS)
    pair.step()
    before = copy.deepcopy([params_of(optimizer) for optimizer in pair.optimizers])
    originals, pair.optimizers = pair.optimizers, travel(pair.optimizers)
    pair.step()
    pair.step()
    for optimizer, expected in zip(originals, before, strict=True):
        for param, other in zip(params_of(optimizer), expected, strict=True):
            assert torch.equal(param, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failed_step_leaves_nothing_to_go_on_from(backend, full):
    pair = CachePair("fp32", backend)
    pair.step()
    full.clear()
    with mock.patch("torch.autograd.graph.increment_version", side_effect=OSError("stop")):
        for optimizer in pair.optimizers:
            with pytest.raises(OSError, match="stop"):
                optimizer.step()
    pair.step()
    assert full.count(pair.optimizers[0]) == 1


def test_what_cannot_be_compiled_is_done_anew(full):
    pair = CachePair("fp32", "reference")
    pair.step()
    full.clear()
    with mock.patch("fused_optim.step.plan.Plan.run_cached", side_effect=CompileError("stop")):
        pair.step()
    assert full.count(pair.optimizers[0]) == 1


def test_versions_move_each_step(full):
    """Guard against steps that autograd does not see, and full steps after an edit."""
    param = Parameter(torch.ones(5000, dtype=torch.bfloat16))
    optimizer = AdamW([param], weights="split", backend="reference")
    for _ in range(3):
        param.grad = torch.ones_like(param)
        version = param._version
        optimizer.step()
        assert param._version > version
        with torch.no_grad():
            param.clamp_(-5, 5)
    assert len(full) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_reference_to_tensors_remains(backend, full):
    """Guard against references to tensors of the last step or the one before."""
    params = parameters(values(SHAPES, torch.float32))
    optimizer = AdamW(params, lr=torch.tensor(0.1), backend=backend)
    seen = []
    for _ in range(3):
        set_grads(params, values(SHAPES, torch.float32))
        seen += [weakref.ref(param.grad) for param in params]
        optimizer.step()
    assert len(full) == 1
    tensors = [*params, *(t for state in optimizer.state.values() for t in state.values())]
    seen += map(weakref.ref, [*tensors, optimizer.param_groups[0]["lr"]])
    del tensors
    optimizer.zero_grad()
    optimizer.state.clear()
    optimizer.param_groups[0]["params"].clear()
    optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] = 0.1
    params.clear()
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)


@PROFILER_WARNS
def test_allocations_do_not_grow_with_the_tensors(full):
    """Guard against a tensor for each parameter: 300 take as many as 10."""
    counts = []
    for tensors in (10, 300):
        params = parameters(values([(5,)] * tensors, torch.float32))
        optimizer = SGD(params, momentum=0.9, max_grad_norm=1.0, backend=KERNELS)
        with mock.patch("fused_optim.backends.kernel_runner.KernelRunner._run"):
            for _ in range(2):
                set_grads(params, [torch.ones(5)] * tensors)
                optimizer.step()
            counts.append(sum(size > 0 for size in tensor_allocations(optimizer.step)))
    assert counts[0] == counts[1] > 0
    assert len(full) == 2


def test_a_step_leaks_no_memory(full, monkeypatch):
    """Guard against leaked Python memory, with new gradients and old ones."""
    # a mock would keep its calls
    monkeypatch.setattr(
        "fused_optim.backends.kernel_runner.KernelRunner._run", lambda *arguments: None
    )
    for fresh in (False, True):
        params = parameters(values([(5,)] * 50, torch.float32))
        set_grads(params, [torch.ones(5)] * 50)
        optimizer = SGD(params, momentum=0.9, max_grad_norm=1.0, backend=KERNELS)
        blocks = []
        for _ in range(6):
            for _ in range(20):
                if fresh:
                    set_grads(params, [torch.ones(5)] * 50)
                optimizer.step()
            gc.collect()
            blocks.append(sys.getallocatedblocks())
        # fewer than one a step: torch's own step takes some, and others free some
        assert min(after - before for before, after in pairwise(blocks)) < 20
    assert len(full) == 2


# properties in which a tensor can differ
FACTS = {
    "dtype": lambda x: x.view(torch.int32),
    "shape": lambda x: x[:3],
    "strides": lambda x: x.t(),
    "device": lambda x: x.to("meta"),
    "type": lambda x: Parameter(x, requires_grad=False),
    "layout": lambda x: x.to_sparse(),
    "negative": lambda x: torch._neg_view(x),
    "nothing": lambda x: None,
}


@pytest.mark.parametrize("has_guards", [True, False])
@pytest.mark.parametrize("fact", FACTS)
def test_tensors_are_told_apart(fact, has_guards, monkeypatch):
    """Guard against tensors taken for equal, by torch's function and without it."""
    if not has_guards:
        monkeypatch.setattr(guards, "TENSOR_GUARDS", None)
    assert has_guards == (guards.TENSOR_GUARDS is not None), (
        "this torch lacks it: steps take longer"
    )
    first, second = torch.zeros(4, 4), torch.ones(4, 4)
    same = guards.make_tensor_check([first, second])
    gone = weakref.ref(first)
    assert same(second.clone(), first)
    assert not same(first, FACTS[fact](second))
    del first
    assert gone() is None


def test_without_the_guards_of_torch(monkeypatch, full):
    monkeypatch.setitem(sys.modules, "fused_optim._host", None)
    monkeypatch.setattr(guards, "TENSOR_GUARDS", None)
    pair = CachePair("formats", KERNELS)
    for _ in range(3):
        pair.step()
    assert full.count(pair.optimizers[0]) == 1
