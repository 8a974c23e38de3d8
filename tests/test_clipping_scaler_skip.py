"""Clipping, GradScaler and skips together, over SGD: AdamW does not see the scale of a gradient."""

import itertools
import math

import pytest
import torch
from helpers.models import BACKENDS, exact_values, parameters

from fused_optim import SGD, AdamW, ScheduleFreeSGD, StableAdamW
from fused_optim.options import get_option
from fused_optim.testing.closeness import assert_same_bits

SHAPES = [(40,), (3, 7), (1,)]
on_each = pytest.mark.parametrize("backend", BACKENDS)


def scaled_step(optimizer, grads, scale=None, found_inf=None):
    """Take a step as GradScaler does: it sets both tensors around the step."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    optimizer.grad_scale = None if scale is None else torch.full((1,), float(scale))
    optimizer.found_inf = None if found_inf is None else torch.full((1,), float(found_inf))
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def groups_of(params, **options):
    return [{"params": [param], **options} for param in params]


@on_each
@pytest.mark.parametrize("scale", [1024.0, 2.0**-6])
def test_the_norm_is_that_of_unscaled_gradients(backend, scale):
    """Guard against a norm, or a clip factor, of the gradients as they were scaled."""
    starts, grads = (exact_values(SHAPES, torch.float32, seed) for seed in (0, 1))
    params = parameters(starts)
    optimizer = SGD(params, lr=0.5, max_grad_norm=1.0, backend=backend)
    scaled_step(optimizer, [scale * grad for grad in grads], scale, 0.0)
    norm = torch.cat([grad.flatten() for grad in grads]).double().norm().item()
    assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-12)
    assert optimizer.clip_factor.item() == pytest.approx(1.0 / (norm + 1e-6), rel=1e-12)
    for param, start, grad in zip(params, starts, grads, strict=True):
        expected = start.double() - 0.5 * grad.double() / (norm + 1e-6)
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-6, atol=1e-7)


@on_each
@pytest.mark.parametrize("found_inf", [1.0, 2.0, 0.5, 2.0**-40, 3e38])
def test_any_found_inf_skips(backend, found_inf):
    """Guard against a comparison with exactly 1."""
    starts = exact_values(SHAPES, torch.float32)
    params = parameters(starts)
    optimizer = SGD(params, lr=0.5, momentum=0.9, backend=backend)
    scaled_step(optimizer, [torch.ones(shape) for shape in SHAPES], 8.0, found_inf)
    assert optimizer.skipped.item()
    for param, start in zip(params, starts, strict=True):
        assert_same_bits("param", param, start)
        assert not optimizer.state[param]["momentum_buffer"].any()


@on_each
@pytest.mark.parametrize("skips", list(itertools.product([False, True], repeat=3)))
def test_each_group_skips_for_itself_from_any_step_on(backend, skips):
    """Guard against a change of one group's ``nonfinite`` that others take, or that none takes."""
    starts = exact_values(SHAPES, torch.float32)
    params = parameters(starts)
    optimizer = SGD(groups_of(params), lr=0.5, backend=backend)
    grads = [torch.ones(shape) for shape in SHAPES]
    for _ in range(2):  # the second reuses the first
        scaled_step(optimizer, grads)
    for group, skip in zip(optimizer.param_groups, skips, strict=True):
        group["nonfinite"] = "skip" if skip else "propagate"
    before = [param.detach().clone() for param in params]
    bad = [grads[0], torch.full(SHAPES[1], math.inf), grads[2]]
    scaled_step(optimizer, bad)
    assert optimizer.skipped.item() == any(skips)
    for param, start, grad, skip in zip(params, before, bad, skips, strict=True):
        assert_same_bits("param", param, start if skip else start - 0.5 * grad)


@on_each
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.25},
        {"momentum": 0.5},
        {"weight_decay": 0.125},
        {"max_grad_value": 0.5},
        {"l1": 0.25},
        {"maximize": True},
        {"dampening": 0.5},
        {"nesterov": True},
        {"ema_decay": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_option_may_change_between_any_two_steps(backend, index, change):
    """Guard against options that a reused step reads late, or in the wrong group."""
    results = []
    for reuse in (True, False):
        params = parameters(exact_values(SHAPES, torch.float32))
        options = {"lr": 0.5, "momentum": 0.75, "max_grad_norm": 3.0, "backend": backend}
        optimizer = SGD(groups_of(params), **options)
        group = optimizer.param_groups[index]
        before = {name: get_option(group, name) for name in change}
        for step in range(6):
            group.update(change if step in (2, 3) else before)
            if not reuse:
                optimizer._engine.cache = None
            scaled_step(optimizer, exact_values(SHAPES, torch.float32, step))
        results.append([param.detach().clone() for param in params])
    for ours, expected in zip(*results, strict=True):
        assert_same_bits("param", ours, expected)


@on_each
def test_every_parameter_tells_autograd_of_its_update(backend):
    """Guard against version counters that only the first parameter's bucket gets."""
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float64]
    params = parameters([torch.ones(5, dtype=dtype) for dtype in dtypes])
    optimizer = SGD(params, lr=0.5, backend=backend)
    for step in range(3):
        versions = [param._version for param in params]
        scaled_step(optimizer, [torch.ones_like(param) for param in params])
        changed = [param._version > old for param, old in zip(params, versions, strict=True)]
        assert all(changed), f"step {step}: {changed}"


@on_each
def test_l1_leaves_a_zero_weight_alone(backend):
    (param,) = parameters([torch.tensor([0.0, 1.0, -1.0])])
    optimizer = SGD([param], lr=0.5, l1=0.5, backend=backend)
    scaled_step(optimizer, [torch.zeros(3)])
    assert param.tolist() == [0.0, 0.75, -0.75]


@on_each
def test_eps_of_stable_adamw_is_a_floor(backend):
    """Guard against eps that is added to the second moment where the update is clipped."""
    (param,) = parameters([torch.zeros(64)])
    optimizer = StableAdamW([param], lr=1.0, eps=5.0, weight_decay=0.0, backend=backend)
    expected, m, v = 0.0, 0.0, 0.0
    for step, g in enumerate((1.0, 10.0), 1):
        scaled_step(optimizer, [torch.full((64,), g)])
        weight1, weight2 = 0.1 / (1 - 0.9**step), 0.01 / (1 - 0.99**step)
        m, v = m + weight1 * (g - m), v + weight2 * (g * g - v)
        rms = (g * g / max(v, 25.0)) ** 0.5
        expected -= 1.0 / max(rms, 1.0) * m / (v**0.5 + 5.0)
    assert param.tolist() == pytest.approx([expected] * 64, rel=1e-5)


@on_each
def test_schedule_free_weighs_by_the_largest_rate_so_far(backend):
    """Guard against the rate of now: a falling rate shows it."""
    (param,) = parameters([torch.ones(4)])
    optimizer = ScheduleFreeSGD([param], lr=1.0, momentum=0.5, backend=backend)
    for lr in (1.0, 0.25):
        optimizer.param_groups[0]["lr"] = lr
        scaled_step(optimizer, [torch.ones(4)])
    # both weights are 1 ** 2: the average x is the mean of the iterates z
    optimizer.eval()
    assert param.tolist() == pytest.approx([((1.0 - 1.0) + (1.0 - 1.25)) / 2] * 4, rel=1e-6)


@on_each
def test_stalled_may_be_asked_for_later_and_counts_elements_alone(backend):
    """Guard against a count that needs the first step, or that includes masked lanes."""
    params = parameters([torch.ones(n, dtype=torch.bfloat16) for n in (67, 500)])
    optimizer = AdamW(groups_of(params), lr=1e-6, weight_decay=0.0, backend=backend)
    grads = [torch.ones_like(param) for param in params]
    scaled_step(optimizer, grads)
    assert optimizer.stalled is None
    optimizer.param_groups[0]["count_stalled"] = True  # the other group is not counted
    with pytest.warns(UserWarning, match="did not move"):
        scaled_step(optimizer, grads)
    assert optimizer.stalled.item() == 1.0
