"""The reference against torch.optim, 50 steps: as close to float64 as torch, in every dtype.

The exact run is torch.optim in float64 on the same parameters and gradients. What this guards, each
tried by hand: a step that does nothing, decoupled decay where L2 is meant and the reverse, a
missing bias correction, ``eps`` inside the root, a wrong sign for ``maximize``, clipping after the
decay, ``l1`` before clipping, dampening of the first gradient.
"""

import contextlib
import copy

import pytest
import torch
from cases import CASES, named, peer_step
from closeness import assert_as_accurate
from models import KERNELS, give, parameters, state_of, values
from torch import Tensor

STEPS = 50
PAIRS = [case for case in CASES if case.peer is not None]
SHAPES = [(1,), (33, 65), (3, 341), (0,), ()]


@contextlib.contextmanager
def counters_in(dtype):
    """torch keeps counters in the default dtype: all that is not a parameter must be exact too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run_beside_torch(case, start, dtype, backend, steps=STEPS):
    """Ours, torch's in ``dtype`` and torch's in float64, on the same gradients."""
    ours, theirs, exact = parameters(start), parameters(start), parameters(start, torch.float64)
    fused = case.fused(ours, **copy.deepcopy(case.options), **case.additions, backend=backend)
    # torch forms 1 - lr * weight_decay in the dtype of a tensor lr: the exact run takes a float
    plain = {k: float(v) if isinstance(v, Tensor) else v for k, v in case.options.items()}
    peers = [
        case.peer(theirs, **copy.deepcopy(case.options), foreach=False),
        case.peer(exact, **plain, foreach=False),
    ]
    for step in range(steps):
        grads = values([p.shape for p in start], dtype, seed=100 + step)
        for params in (ours, theirs, exact):
            give(params, grads)
        with counters_in(torch.float64 if dtype is torch.float64 else torch.float32):
            fused.step()
            peer_step(peers[0], case.additions)
        with counters_in(torch.float64):
            peer_step(peers[1], case.additions)
    return (ours, fused), (theirs, peers[0]), (exact, peers[1])


def joined(tensors):
    """All as one: the worst error of a single element is luck, for torch's too."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def compare(*arguments):
    case = arguments[0]
    (ours, fused), (theirs, peer), (exact, oracle) = run_beside_torch(*arguments)
    assert_as_accurate("params", joined(ours), joined(theirs), joined(exact))
    states = [
        [state_of(*pair) for pair in zip([o] * len(params), params, strict=True)]
        for o, params in ((fused, ours), (peer, theirs), (oracle, exact))
    ]
    extra = {"step"} if case.options.get("dampening") else set()
    for mine, other in zip(states[0], states[1], strict=True):
        assert mine.keys() == other.keys() | extra
        assert all(mine[slot].dtype == other[slot].dtype for slot in other)
    for slot in states[1][0]:
        assert_as_accurate(slot, *(joined([state[slot] for state in run]) for run in states))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PAIRS, ids=named)
def test_reference(case, dtype):
    compare(case, values(SHAPES, dtype), dtype, "reference")


@pytest.mark.parametrize("case", PAIRS, ids=named)
def test_triton(case):
    """A few steps: it has the bits of the reference (tests/test_twin.py)."""
    compare(case, values([(7,), (1030,)], torch.float32), torch.float32, KERNELS, 3)


def test_fp16():
    """torch's Adam in fp16 overflows in its state; ours must do no worse where torch does not."""
    for case in PAIRS:
        if case.name in ("adamw-decay", "sgd-nesterov", "sgd-norm-value"):
            compare(case, values(SHAPES, torch.float16), torch.float16, "reference")


def test_float64_differs_from_torch_by_rounding_only():
    """A scalar formed in float32 on the way would be off by 1e-8."""
    for case in PAIRS:
        (ours, _), _, (exact, _) = run_beside_torch(
            case, values([(65,)], torch.float64), torch.float64, "reference"
        )
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)
