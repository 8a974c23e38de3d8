"""``step_in_backward``: clipping by the norm of the last step, and what is refused.

Faults tried by hand: the norm of this step or of the one before the last in place of the last, the
first step clipped, parts of the norm lost or counted twice, a norm kept from a step with an Inf, a
check of options only when the hooks are registered.
"""

import math

import pytest
import torch
from helpers.models import BACKENDS, exact_values, parameters, values
from torch import nn

import fused_optim
from fused_optim import SGD, AdamW, step_in_backward
from fused_optim.testing.closeness import assert_same_bits

SHAPES = [(3, 5), (4160,), (70, 64), (0,)]


def make_params():
    """Return parameters of two dtypes."""
    dtypes = [torch.float32, torch.float32, torch.float64, torch.float32]
    return [parameters(values([s], d))[0] for s, d in zip(SHAPES, dtypes, strict=True)]


def backward(params, grads):
    """Accumulate gradients by autograd, the last parameter first."""
    for param, grad in reversed(list(zip(params, grads, strict=True))):
        param.backward(grad.to(param.dtype))


def norm_of(grads):
    return math.sqrt(sum(grad.double().square().sum().item() for grad in grads))


@pytest.mark.interpreted
@pytest.mark.parametrize("bound", [4.0, 1e6, 0.0, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_step_clips_by_the_last_norm(backend, bound):
    """The squares add up without rounding; a plain step of gradients times the factor is equal."""
    clipped, plain = make_params(), make_params()
    optimizer = AdamW(clipped[:3], max_grad_norm=bound, backend=backend, lr=0.1)
    optimizer.add_param_group({"params": clipped[3:]})
    expected = AdamW(plain, backend=backend, lr=0.1)
    handle = step_in_backward(clipped[:2], optimizer, clip_by_last_norm=True)
    assert handle.last_norm is None
    factor = 1.0
    for seed in range(4):
        grads = [grad * 2.0**seed for grad in exact_values(SHAPES, torch.float32, seed)]
        backward(clipped, grads)  # the last two are updated by step()
        optimizer.step()
        optimizer.zero_grad()
        for param, grad in zip(plain, grads, strict=True):
            param.grad = grad.to(param.dtype) * torch.tensor(factor, dtype=param.dtype)
        expected.step()
        for one, two in zip(plain, clipped, strict=True):
            assert_same_bits(f"parameter in step {seed}", two, one)
        norm = norm_of(grads)
        assert optimizer.grad_norm == handle.last_norm == norm
        assert optimizer.clip_factor == factor
        assert not optimizer.skipped
        factor = min(1.0, bound / (norm + 1e-6))


def test_the_bound_may_change():
    params = parameters(exact_values([(8,)], torch.float32))
    optimizer = SGD(params, lr=1.0, max_grad_norm=1.0)
    step_in_backward(params, optimizer, clip_by_last_norm=True)
    for bound, factor in ((1.0, 1.0), (2.0, 2.0), (8.0, 8.0), (None, math.inf), (4.0, 4.0)):
        optimizer.max_grad_norm = bound
        before = params[0].detach().clone()
        params[0].backward(torch.full((8,), 8.0))
        optimizer.step()
        norm = 8.0 * math.sqrt(8.0)
        used = 1.0 if factor in (1.0, math.inf) else factor / (norm + 1e-6)
        torch.testing.assert_close(before - params[0], torch.full((8,), 8.0 * used))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_inf_skips_only_its_own_parameter(backend):
    """Guard against a norm of Inf in the next step, and against states with NaN."""
    params = make_params()[:3]
    optimizer = AdamW(params, max_grad_norm=4.0, nonfinite="skip", backend=backend)
    handle = step_in_backward(params, optimizer, clip_by_last_norm=True)
    good = exact_values(SHAPES[:3], torch.float32)
    backward(params, good)
    optimizer.step()
    norm, before = norm_of(good), [param.detach().clone() for param in params]
    bad = [grad.clone() for grad in good]
    bad[1][7] = math.inf
    backward(params, bad)
    optimizer.step()
    moved = [not same for same in map(torch.equal, before, params)]
    assert moved == [True, False, True]
    assert optimizer.skipped
    assert optimizer.grad_norm == math.inf
    assert handle.last_norm == norm
    assert [optimizer.state[param]["step"].item() for param in params] == [2, 1, 2]
    backward(params, good)
    optimizer.step()
    assert optimizer.clip_factor == 4.0 / (norm + 1e-6)
    assert not optimizer.skipped
    assert all(state["exp_avg_sq"].isfinite().all() for state in optimizer.state.values())


def test_skipping_without_clipping():
    params = make_params()[:2]
    optimizer = AdamW(params, nonfinite="skip")
    step_in_backward(params, optimizer, clip_by_last_norm=True)
    backward(params, [torch.full(SHAPES[0], math.nan), torch.ones(SHAPES[1])])
    optimizer.step()
    assert optimizer.skipped
    assert optimizer.clip_factor == 1.0
    assert [optimizer.state[param]["step"].item() for param in params] == [0, 1]


def test_norms_of_steps_without_some_or_all_gradients():
    """Guard against parts of an earlier step in the norm, and a norm lost in a checkpoint."""
    params = parameters(exact_values([(8,), (4,)], torch.float32))
    optimizer = SGD(params, lr=0.1, max_grad_norm=1.0)
    handle = step_in_backward(params, optimizer, clip_by_last_norm=True)
    backward(params, [torch.full((8,), 8.0), torch.ones(4)])
    optimizer.step()
    assert handle.last_norm == math.sqrt(8 * 64 + 4)
    params[1].backward(torch.full((4,), 3.0))
    optimizer.step()
    assert handle.last_norm == optimizer.grad_norm == 6.0
    optimizer.step()
    assert handle.last_norm == 6.0
    optimizer.load_state_dict(optimizer.state_dict())
    params[0].backward(torch.ones(8))
    optimizer.step()
    assert optimizer.clip_factor == 1.0 / (6.0 + 1e-6)


def test_norms_after_parameters_are_exchanged():
    """Guard against parts of the norm that have the number of another parameter."""
    params = parameters(exact_values([(8,), (4,), (2,)], torch.float32))
    optimizer = SGD(params, lr=0.1, max_grad_norm=1.0)
    handle = step_in_backward(params, optimizer, clip_by_last_norm=True)
    params[0].backward(torch.ones(8))
    optimizer.step()
    optimizer.param_groups[0]["params"] = params[::-1]
    backward(params, [torch.ones(8), torch.zeros(4), torch.ones(2)])
    optimizer.step()
    assert handle.last_norm == math.sqrt(10)


def test_without_the_norm_it_is_unknown():
    params = make_params()
    optimizer = AdamW(params)
    step_in_backward(params[:2], optimizer)
    backward(params, exact_values(SHAPES, torch.float32))
    optimizer.step()
    assert optimizer.grad_norm.isnan()
    assert optimizer.clip_factor == 1.0
    assert not optimizer.skipped


@pytest.mark.parametrize("option", [{"max_grad_norm": 1.0}, {"nonfinite": "skip"}], ids=str)
def test_options_that_need_all_gradients_are_refused(option):
    params = make_params()
    words = "needs the norm of all gradients, which is not known.*clip_by_last_norm=True"
    optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}], **option)
    with pytest.raises(ValueError, match=words):
        step_in_backward(params, optimizer)
    assert not params[0]._post_accumulate_grad_hooks
    optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}])
    step_in_backward(params, optimizer)
    before = [param.detach().clone() for param in params]
    if "nonfinite" in option:
        optimizer.param_groups[1].update(option)
    else:
        optimizer.max_grad_norm = 1.0
    with pytest.raises(ValueError, match=words):
        backward(params, exact_values(SHAPES, torch.float32))
    assert all(map(torch.equal, before, params))
    assert not optimizer.state


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_is_refused(fused):
    model = nn.Linear(4, 4)
    optimizer = AdamW(model.parameters(), fused=fused)
    step_in_backward(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.ones(2, 4)).sum()).backward()
    words = "GradScaler cannot be used with step_in_backward"
    with pytest.raises((RuntimeError, AssertionError), match=words):
        scaler.step(optimizer)


def test_what_cannot_be_updated_in_backward():
    params = make_params()
    optimizer = AdamW(params[:2])
    with pytest.raises(TypeError, match="must be an optimizer of fused_optim, got SGD"):
        step_in_backward(params, torch.optim.SGD(params, lr=0.1))
    with pytest.raises(ValueError, match=r"others of shapes \[\(70, 64\), \(0,\)\]"):
        step_in_backward(params, optimizer)
    for param in params[:2]:
        param.requires_grad_(False)
    with pytest.raises(ValueError, match="got 2 parameters of it, all of them frozen"):
        step_in_backward(params[:2], optimizer)
    lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="run a forward pass first"):
        step_in_backward(lazy, AdamW(lazy.parameters()))
    with pytest.warns(UserWarning, match="duplicate"):
        twice = SGD([params[2], params[2]], lr=0.1)
    with pytest.raises(ValueError, match="more than once in its group"):
        step_in_backward(params[2:3], twice)
    assert not any(param._post_accumulate_grad_hooks for param in params)


def test_a_module_may_have_parameters_of_another_optimizer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ours, others = AdamW(model[0].parameters()), torch.optim.SGD(model[1].parameters(), 0.1)
    step_in_backward(model, ours)
    before = [param.detach().clone() for param in model.parameters()]
    model(torch.ones(1, 2)).sum().backward()
    moved = [not same for same in map(torch.equal, before, model.parameters())]
    assert moved == [True, True, False, False]
    assert all(param.grad is not None for param in model[1].parameters())
    others.step()
    ours.step()


def test_errors_name_parameter_and_group():
    params = make_params()
    groups = [{"params": [("a", params[0])]}, {"params": [("b", params[1])]}]
    optimizer = AdamW(groups)
    step_in_backward(params[:2], optimizer)
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"'exp_avg' of the parameter 'b' .* in group 1"):
        backward(params[:2], exact_values(SHAPES[:2], torch.float32))
    del optimizer.param_groups[1]
    with pytest.raises(RuntimeError, match="not in the optimizer any more"):
        params[1].backward(torch.ones(SHAPES[1]))
    refused = fused_optim.SparseAdam(params[2:3])
    step_in_backward(params[2:3], refused)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        params[2].backward(torch.ones(SHAPES[2], dtype=torch.float64))
    assert not refused.state
