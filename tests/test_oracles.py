"""The optimizers that torch.optim lacks, compared with oracles in numpy and at their limits.

In float64 ours differ by rounding only; in float32 they are as close to float64 as numpy's float32.
Faults tried by hand: the two betas of Lion exchanged, a slow average that is bias-corrected, a
schedule linear in beta3, a first difference of Adan that is the gradient itself, decay before the
step for decay after it, an average x of the old z.
"""

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values
from helpers.torch_comparison import compare_with_torch

from fused_optim import AdamW, Adan, AdEMAMix, Lion
from fused_optim.testing.cases import CASES, get_name
from fused_optim.testing.oracles import ORACLES

OURS = [case for case in CASES if case.class_name in ORACLES]
STEPS = 50
SHAPES = [(1,), (33, 65), (3, 341), (0,), ()]


def test_every_optimizer_is_in_torch_or_has_an_oracle():
    assert {case.class_name for case in OURS} == set(ORACLES)
    assert not [case for case in CASES if case.torch_class is None and case not in OURS]


def gradients(dtype):
    """Return the gradients of all steps."""
    return [values(SHAPES, dtype, seed=100 + step) for step in range(STEPS)]


def run(optimizer, params, grads):
    """Take a step for each of ``grads``."""
    for given in grads:
        set_grads(params, given)
        optimizer.step()


@pytest.mark.parametrize("case", OURS, ids=get_name)
def test_float32_is_as_accurate_as_numpy(case):
    compare_with_torch(case, values(SHAPES, torch.float32), torch.float32, "reference")


# the kernels have the reference's bits, in float64 too: test_kernels_vs_reference.py
@pytest.mark.parametrize("case", OURS, ids=get_name)
def test_float64_differs_from_the_paper_by_rounding_only(case):
    start = values(SHAPES, torch.float64)
    found = compare_with_torch(case, start, torch.float64, "reference", steps=20)
    assert ("x" in found) == case.class_name.startswith("ScheduleFree")


def test_lion_with_equal_betas_is_the_sign_of_momentum():
    start, grads = values(SHAPES, torch.float64), gradients(torch.float64)
    ours, theirs = parameters(start), parameters(start)
    run(Lion(ours, 0.01, betas=(0.9, 0.9)), ours, grads)
    momentum = [torch.zeros_like(p) for p in start]
    for given in grads:
        for p, m, g in zip(theirs, momentum, given, strict=True):
            m.mul_(0.9).add_(g, alpha=0.1)
            p.data.sub_(m.sign(), alpha=0.01)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lion_stands_still_without_a_gradient_and_shows_nan(backend):
    params = parameters([torch.tensor([1.0, 2.0, 3.0])])
    optimizer = Lion(params, 0.5, backend=backend)
    run(optimizer, params, [[torch.tensor([0.0, -0.0, torch.nan])]])
    assert params[0].tolist()[:2] == [1.0, 2.0]
    assert params[0][2].isnan()


def assert_same_path(make, other, grads=None):
    """Check that two optimizers agree after 50 steps in float64."""
    start = values(SHAPES, torch.float64)
    ours, theirs = parameters(start), parameters(start)
    grads = gradients(torch.float64) if grads is None else grads
    run(make(ours), ours, grads)
    run(other(theirs), theirs, grads)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_ademamix_without_its_slow_average_is_adamw():
    shared = {"lr": 0.03, "eps": 1e-3, "weight_decay": 0.3, "backend": "reference"}
    assert_same_path(
        lambda p: AdEMAMix(p, betas=(0.9, 0.99, 0.999), alpha=0.0, **shared),
        lambda p: AdamW(p, betas=(0.9, 0.99), **shared),
    )


def test_ademamix_with_a_beta1_of_zero_is_its_limit():
    """Guard against two rules, with and without a fast average, that differ at 0."""
    options = {"lr": 0.03, "alpha_warmup": 30, "eps": 1e-3, "backend": "reference"}
    assert_same_path(
        lambda p: AdEMAMix(p, betas=(0.0, 0.99, 0.999), **options),
        lambda p: AdEMAMix(p, betas=(1e-300, 0.99, 0.999), **options),
    )


def test_adan_without_differences_is_adamw():
    """Guard against differences of gradients that enter with a second beta of 0."""
    shared = {"lr": 0.03, "eps": 1e-3, "weight_decay": 0.3, "backend": "reference"}
    assert_same_path(
        lambda p: Adan(p, betas=(0.9, 0.0, 0.99), no_prox=True, **shared),
        lambda p: AdamW(p, betas=(0.9, 0.99), **shared),
    )


def test_adan_of_a_constant_gradient_has_no_differences():
    start = values(SHAPES, torch.float64)
    constant = [values(SHAPES, torch.float64, seed=1)] * STEPS
    params = parameters(start)
    optimizer = Adan(params, 0.03, eps=1e-3, backend="reference")
    run(optimizer, params, constant)
    assert all(not optimizer.state[p]["exp_avg_diff"].any() for p in params)
    expected = [
        p - STEPS * 0.03 * g / (g.abs() + 1e-3) for p, g in zip(start, constant[0], strict=True)
    ]
    torch.testing.assert_close([p.detach() for p in params], expected, rtol=1e-11, atol=1e-11)
