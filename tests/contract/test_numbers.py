"""Extreme, infinite and NaN gradients and long runs, compared with torch's.

Faults guarded against: ``g * g`` formed before the weight, counts in float32 added to, ``0 * inf``.
"""

import math

import pytest
import torch
from helpers.models import set_grads, state_of, values
from helpers.torch_comparison import compare_with_torch
from helpers.torch_pair import IN_TORCH, Pair, each_case, each_class
from helpers.versions import CENTERED_OVERFLOWS

from fused_optim.testing.closeness import join_flat


@pytest.mark.feature("extreme gradients")
@pytest.mark.parametrize("scale", [1e30, 1e19, 1e-19, 1e-30], ids=str)
@each_case
def test_extreme_gradients(case, scale, request):
    """Guard against overflow in float32, in which squares of 1e19 and 1e-19 just fit."""
    if case.options.get("centered") and scale == 1e30:
        request.applymarker(CENTERED_OVERFLOWS)
    if case.fused.__name__ == "NAdam" and scale == 1e19:
        scale = 1e17  # torch's divides by 1 - beta2 before the root, and overflows
    pair = Pair(case, values([(6,), (3,)], torch.float32))
    for seed in range(3):
        # of one sign: differences of close values have no digits to compare
        grads = [g.abs() for g in values([(6,), (3,)], torch.float32, seed)]
        grads[0][2:] *= scale
        for params in pair.params:
            set_grads(params, grads)
        for optimizer in pair.optimizers:
            optimizer.step()
    compare_with_nan(pair)


def compare_with_nan(pair):
    """Check that Inf and NaN are at the same elements of parameters and states."""
    for mine, other in zip(*pair.params, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)
        states = state_of(pair.optimizers[0], mine), state_of(pair.optimizers[1], other)
        for name, value in states[1].items():
            torch.testing.assert_close(states[0][name], value, equal_nan=True)


def compare_finite(mine, other):
    """Check that the same elements are finite, and equal."""
    finite = other.isfinite()
    assert torch.equal(mine.isfinite(), finite)
    torch.testing.assert_close(mine[finite], other[finite])


@pytest.mark.feature("Inf and NaN gradients")
@each_case
def test_inf_and_nan_propagate_as_in_torch(case):
    """Guard against other parameters in the step of an Inf, and other finite elements later.

    Where torch interpolates with lerp, an Inf in a state turns into NaN; ours stays Inf.
    """
    pair = Pair(case, values([(6,), (3,)], torch.float32))
    bad = torch.tensor([1.0, math.inf, -1.0, math.nan, -math.inf, 0.0])
    for seed, grad in enumerate([None, bad, None, None]):
        grads = values([(6,), (3,)], torch.float32, seed)
        for params in pair.params:
            set_grads(params, grads if grad is None else [grad, grads[1]])
        for optimizer in pair.optimizers:
            optimizer.step()
        if seed == 1:
            torch.testing.assert_close(*pair.params, equal_nan=True)
        for mine, other in zip(*pair.params, strict=True):
            states = state_of(pair.optimizers[0], mine), state_of(pair.optimizers[1], other)
            compare_finite(mine, other)
            for name, value in states[1].items():
                compare_finite(states[0][name], value)
    assert pair.params[0][0][[0, 2, 5]].isfinite().all()
    assert pair.params[0][1].isfinite().all()


@pytest.mark.feature("10 million steps")
@each_case
def test_ten_million_steps(case):
    pair = Pair(case)
    pair.step(1)
    for optimizer, params in pair.both:
        for param in params:
            state = optimizer.state.get(param, {})
            if "step" in state:
                state["step"].fill_(10_000_000)
    pair.step(3)
    for optimizer in pair.optimizers:
        for state in optimizer.state.values():
            assert state.get("step", 10_000_003) == 10_000_003


@pytest.mark.feature("500 tensors")
@each_class
def test_five_hundred_tensors(case):
    start = values([(1 + i % 3,) for i in range(500)], torch.float64)
    pair = Pair(case, start, group=lambda p: [{"params": p[:200]}, {"params": p[200:], "lr": 0.1}])
    for _ in range(2):
        pair.backward()
        for optimizer in pair.optimizers:
            optimizer.step()
    torch.testing.assert_close(*map(join_flat, pair.params))
    assert not torch.equal(pair.params[0][499], start[499])


@pytest.mark.feature("250 steps")
@each_class
def test_hundreds_of_steps(case):
    pair = Pair(case, values([(5,)], torch.float64), foreach=False)
    grads = torch.randn(250, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for optimizer, (param,) in pair.both:
        for grad in grads:
            param.grad = grad
            optimizer.step()
    pair.check()


@pytest.mark.feature("half precision")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_class
def test_half_precision(case, dtype):
    """Guard against an error after 50 steps above twice torch's own plus one rounding."""
    # an eps of 1e-8 is 0 in fp16, where torch divides by it
    safe = [c for c in IN_TORCH if c.fused is case.fused and c.options.get("eps", 0) > 1e-4]
    case = (*safe, case)[0]
    compare_with_torch(case, values([(31,), (2, 3)], dtype), dtype, "reference")
