"""Clipping, the non-finite skip, and the attributes that report them."""

import math

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values

import fused_optim
from fused_optim import SGD, AdamW

SHAPES = [(5,), (3, 700), (0,)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_and_factor_are_those_of_torch(backend):
    """Guard against another epsilon than torch's, a norm of one group, and written gradients."""
    params = parameters(values(SHAPES, torch.float32))
    params += parameters(values([(9,)], torch.bfloat16))
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
    optimizer = SGD(groups, lr=0.1, max_grad_norm=0.7, backend=backend)
    grads = [*values(SHAPES, torch.float32, 1), *values([(9,)], torch.bfloat16, 1)]
    set_grads(params, grads)
    optimizer.step()
    norm = torch.nn.utils.get_total_norm([g.double() for g in grads])
    torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-14, atol=0)
    torch.testing.assert_close(optimizer.clip_factor, 0.7 / (norm + 1e-6), rtol=1e-14, atol=0)
    assert not optimizer.skipped
    assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_new_tensors_each_step(backend):
    """Guard against a log of norms that all become the last one."""
    params = parameters(values(SHAPES, torch.float32))
    optimizer = SGD(params, max_grad_norm=1.0, backend=backend)
    assert (optimizer.grad_norm, optimizer.clip_factor, optimizer.skipped) == (None, None, None)
    assert optimizer.backend_used is None
    seen = []
    for scale in (1.0, 2.0):
        set_grads(params, [scale * torch.ones(s) for s in SHAPES])
        optimizer.step()
        seen.append((optimizer.grad_norm, optimizer.clip_factor))
    assert seen[1][0] == 2 * seen[0][0]
    assert seen[0][1] > seen[1][1]
    for result in (optimizer.grad_norm, optimizer.clip_factor, optimizer.skipped):
        assert result.shape == ()
        assert result.device == params[0].device


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_bound_measures_and_never_clips(backend):
    params = parameters(values(SHAPES, torch.float32))
    before = [p.detach().clone() for p in params]
    optimizer = SGD(params, lr=1.0, max_grad_norm=math.inf, backend=backend)
    set_grads(params, [torch.full(s, 4.0) for s in SHAPES])
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(4 * math.sqrt(2105))
    assert optimizer.clip_factor == 1
    assert all(torch.equal(p, b - 4) for p, b in zip(params, before, strict=True))
    optimizer.max_grad_norm = None
    optimizer.step()
    assert optimizer.grad_norm.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [(0, 0), (1, 2099), (1, 1024)])
def test_skip_changes_nothing(backend, bad, where):
    """Guard against skipped steps that move parameters, states or counts."""
    params = parameters(values(SHAPES, torch.float32))
    optimizer = AdamW(params, nonfinite="skip", max_grad_norm=1.0, backend=backend)
    for _ in range(2):
        before = [p.detach().clone() for p in params]
        states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
        grads = values(SHAPES, torch.float32, 3)
        grads[where[0]].view(-1)[where[1]] = bad
        set_grads(params, grads)
        optimizer.step()
        assert optimizer.skipped
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        for param, state in zip(params, states, strict=True):
            for slot, value in optimizer.state[param].items():
                assert torch.equal(value, state.get(slot, torch.zeros_like(value)))
        set_grads(params, values(SHAPES, torch.float32, 4))
        optimizer.step()
        assert not optimizer.skipped
        assert not torch.equal(params[1], before[1])
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_first_step_leaves_dampened_momentum_fresh(backend):
    """Guard against torch's fault: its fused SGD then starts from an uninitialised buffer."""
    start = values([(40,)], torch.float32)
    ours, theirs = parameters(start), parameters(start)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    fused = SGD(ours, **options, nonfinite="skip", backend=backend)
    torch_optimizer = torch.optim.SGD(theirs, **options)
    set_grads(ours, [torch.full((40,), math.nan)])
    fused.step()
    for seed in range(3):
        grads = values([(40,)], torch.float32, seed)
        set_grads(ours, grads)
        set_grads(theirs, grads)
        fused.step()
        torch_optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip_is_per_group_and_looks_at_every_gradient(backend):
    params = parameters(values([(4,), (4,), (4,)], torch.float32))
    before = [p.detach().clone() for p in params]
    groups = [{"params": params[:2], "nonfinite": "skip"}, {"params": params[2:]}]
    optimizer = SGD(groups, lr=0.1, backend=backend)
    set_grads(params, [torch.ones(4), torch.ones(4), torch.tensor([1.0, math.inf, 1.0, 1.0])])
    optimizer.step()
    assert optimizer.skipped
    assert torch.equal(params[0], before[0])
    assert torch.equal(params[1], before[1])
    assert torch.equal(params[2][[0, 2, 3]], before[2][[0, 2, 3]] - 0.1)
    assert params[2][1] == -math.inf


@pytest.mark.parametrize("backend", BACKENDS)
def test_nonfinite_gradients_propagate_as_in_torch(backend):
    for bad in (math.inf, math.nan):
        for bound in (None, 1.0):
            ours, theirs = (parameters(values([(4,)], torch.float32)) for _ in range(2))
            fused = SGD(ours, lr=0.1, max_grad_norm=bound, backend=backend)
            set_grads(ours, [torch.tensor([1.0, bad, -1.0, 2.0])])
            set_grads(theirs, [torch.tensor([1.0, bad, -1.0, 2.0])])
            if bound:
                torch.nn.utils.clip_grad_norm_(theirs, bound)
            torch.optim.SGD(theirs, lr=0.1).step()
            fused.step()
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_term_that_is_off_is_left_out(backend):
    """Guard against ``0 * inf``, which turns an infinite parameter into NaN."""
    for cls, options in ((SGD, {"lr": 0.1}), (AdamW, {"weight_decay": 0.0})):
        params = parameters([torch.tensor([1.0, math.inf, -math.inf])])
        optimizer = cls(params, backend=backend, **options)
        set_grads(params, [torch.ones(3)])
        optimizer.step()
        assert params[0][1:].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_gradients_have_a_finite_norm(backend):
    """Guard against squares in float32: those of 1e30 overflow, those of 1e-30 vanish."""
    for scale in (1e30, 1e-30):
        params = parameters([torch.zeros(1000)])
        optimizer = SGD(params, lr=1.0, max_grad_norm=1.0, backend=backend)
        set_grads(params, [torch.full((1000,), scale)])
        optimizer.step()
        assert optimizer.grad_norm == pytest.approx(scale * math.sqrt(1000), rel=1e-6)
        assert params[0].isfinite().all()


def test_without_gradients_nothing_happens():
    params = parameters(values(SHAPES, torch.float32))
    optimizer = fused_optim.AdamW(params, max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == 0
    assert not optimizer.state
