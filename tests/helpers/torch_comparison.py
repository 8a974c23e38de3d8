"""Comparison of a backend with torch.optim, and of both with torch.optim in float64."""

import contextlib
import copy

import torch
from helpers.cases import step_torch
from helpers.models import parameters, set_grads, state_of, values
from helpers.tolerances import assert_as_accurate, join_flat
from torch import Tensor

STEPS = 50


@contextlib.contextmanager
def default_dtype(dtype):
    """Set torch's default dtype within a context: torch creates counters in it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run_both(case, start, dtype, backend, steps=STEPS):
    """Run ours, torch in ``dtype`` and torch in float64 on the same gradients.

    Returns:
        Three pairs of parameters and optimizer.
    """
    ours, theirs, exact = parameters(start), parameters(start), parameters(start, torch.float64)
    fused = case.fused(ours, **copy.deepcopy(case.options), **case.additions, backend=backend)
    # torch forms 1 - lr * weight_decay in the dtype of a tensor lr: the exact run takes a float
    plain = {k: float(v) if isinstance(v, Tensor) else v for k, v in case.options.items()}
    optimizers = [
        case.torch_class(theirs, **copy.deepcopy(case.options), foreach=False),
        case.torch_class(exact, **plain, foreach=False),
    ]
    for step in range(steps):
        grads = values([p.shape for p in start], dtype, seed=100 + step)
        for params in (ours, theirs, exact):
            set_grads(params, grads)
        with default_dtype(torch.float64 if dtype is torch.float64 else torch.float32):
            fused.step()
            step_torch(optimizers[0], case.additions)
        with default_dtype(torch.float64):
            step_torch(optimizers[1], case.additions)
    return (ours, fused), (theirs, optimizers[0]), (exact, optimizers[1])


def compare_with_torch(case, start, dtype, backend, steps=STEPS):
    """Check parameters, states, their names and dtypes after ``steps`` steps."""
    runs = run_both(case, start, dtype, backend, steps)
    (ours, fused), (theirs, torch_optimizer), (exact, oracle) = runs
    assert_as_accurate("params", join_flat(ours), join_flat(theirs), join_flat(exact))
    states = [
        [state_of(*pair) for pair in zip([o] * len(params), params, strict=True)]
        for o, params in ((fused, ours), (torch_optimizer, theirs), (oracle, exact))
    ]
    extra = {"step"} if case.options.get("dampening") else set()
    for mine, other in zip(states[0], states[1], strict=True):
        assert mine.keys() == other.keys() | extra
        assert all(mine[slot].dtype == other[slot].dtype for slot in other)
    for slot in states[1][0]:
        assert_as_accurate(slot, *(join_flat([state[slot] for state in run]) for run in states))
