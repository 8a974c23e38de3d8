"""Utilities of torch around a step: scaling, averages, hooks of backward and compilation.

Faults guarded against: a step that unscales twice, a skipped step that is counted, a result that a
compiled caller does not see.
"""

import math
import warnings

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values
from helpers.torch_pair import Pair, each_case, each_class
from torch import nn
from torch.optim import swa_utils

SHAPES = [(6,), (2, 3)]


def float_pair(case):
    """Return a pair in float32, the dtype of GradScaler's scales."""
    return Pair(case, values(SHAPES, torch.float32))


@pytest.mark.feature("GradScaler")
@pytest.mark.parametrize("way", ["step unscales", "scaler unscales", "unscale_", "attributes"])
@each_case
def test_grad_scaler(case, way):
    """Guard against Inf steps that are counted or not skipped, at the first and at a later step.

    torch's optimizers leave unscaling and skipping to the scaler; a step of ours that measures does
    both itself, and the gradient stays scaled. ``attributes`` is what the scaler does, by hand.
    """
    pair = float_pair(case)
    scalers = [torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2) for _ in range(2)]
    by_itself = way != "scaler unscales"
    pair.optimizers[0].max_grad_norm = math.inf if by_itself else None
    assert pair.optimizers[0]._step_supports_amp_scaling == by_itself
    for seed in range(6):
        bad = seed in (0, 3)
        grads = values(SHAPES, torch.float32, seed)
        if bad:
            grads[1][1, 2] = math.inf
        for scaler, params in zip(scalers, pair.params, strict=True):
            scaler.scale(torch.zeros(()))
            set_grads(params, [grad * scaler.get_scale() for grad in grads])
        scaled = [p.grad.clone() for p in pair.params[0]]
        step_scaled(pair, scalers, way, bad)
        assert [s.get_scale() for s in scalers[:1]] == [s.get_scale() for s in scalers[1:]]
        if way in ("step unscales", "attributes"):
            assert all(map(torch.equal, (p.grad for p in pair.params[0]), scaled))
        torch.testing.assert_close(*pair.params)
    state = state_of(pair.optimizers[0], pair.params[0][0])
    assert "step" not in state or state["step"] == 4


def step_scaled(pair, scalers, way, bad):
    """Take a scaled step of both and update the scales; ``unscale_`` goes with torch's clipping."""
    ours, theirs = pair.optimizers
    if way == "unscale_":
        for scaler, optimizer, params in zip(scalers, pair.optimizers, pair.params, strict=True):
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 1.5)
    if way == "attributes":
        ours.grad_scale = torch.full((1,), scalers[0].get_scale())
        ours.found_inf = torch.full((1,), float(bad))
        ours.step()
        del ours.grad_scale, ours.found_inf
        assert ours.skipped == bad
    else:
        scalers[0].step(ours)
    scalers[1].step(theirs)
    scalers[1].update()
    if way == "attributes":
        scalers[0].load_state_dict(scalers[1].state_dict())
    else:
        scalers[0].update()
    assert not hasattr(ours, "grad_scale")
    assert not hasattr(ours, "found_inf")


@pytest.mark.feature("GradScaler")
@each_class
def test_a_scaler_of_cuda_without_cuda(case):
    """Guard against a script that stops where the scaler disables itself with torch's warning."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU the scaler does not disable itself")
    pair = Pair(case)
    with pytest.warns(UserWarning, match="CUDA is not available"):
        scaler = torch.amp.GradScaler("cuda")
    for _ in range(2):
        pair.backward()
        for optimizer in pair.optimizers:
            assert scaler.step(optimizer) is None
        scaler.update()
        pair.check()


class Model(nn.Module):
    """A model with a norm, whose statistics ``update_bn`` has to form."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.last = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).tanh())


def models(case):
    """Return the same model twice, each with its optimizer."""
    pairs = []
    for cls, added in ((case.fused, {"backend": "reference"}), (case.torch_class, {})):
        torch.manual_seed(0)
        model = Model()
        pairs.append((model, cls(model.parameters(), **added)))
    return pairs


def batch(seed):
    return values([(5, 3)], torch.float64, seed)[0]


def train(model, optimizer, seed):
    optimizer.zero_grad()
    loss = model(batch(seed)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.feature("swa_utils")
@each_class
def test_swa(case):
    """Guard against AveragedModel, SWALR or update_bn that miss a step."""
    results = []
    for model, optimizer in models(case):
        ema_update = swa_utils.AveragedModel(model)
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        for seed in range(5):
            train(model, optimizer, seed)
            ema_update.update_parameters(model)
            schedule.step()
        swa_utils.update_bn([batch(9)], ema_update)
        results.append((optimizer.param_groups[0]["lr"], dict(ema_update.state_dict())))
    torch.testing.assert_close(*results)


@pytest.mark.feature("swa_utils")
@each_class
def test_ema_of_swa_utils(case):
    results = []
    for model, optimizer in models(case):
        multi = swa_utils.get_ema_multi_avg_fn(0.75)
        ema_update = swa_utils.AveragedModel(model, multi_avg_fn=multi, use_buffers=True)
        for seed in range(4):
            train(model, optimizer, seed)
            ema_update.update_parameters(model)
        results.append(dict(ema_update.state_dict()))
    torch.testing.assert_close(*results)


@pytest.mark.feature("ema_decay")
@each_class
def test_ema_decay(case):
    """Guard against another average than AveragedModel's, or one that a checkpoint lacks."""
    ours = parameters(values(SHAPES, torch.float64))
    optimizer = case.fused(ours, ema_decay=0.75, backend="reference")
    ema_update = swa_utils.AveragedModel(
        nn.ParameterList(ours), multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.75)
    )
    for seed in range(4):
        set_grads(ours, values(SHAPES, torch.float64, seed))
        optimizer.step()
        ema_update.update_parameters(nn.ParameterList(ours))
    expected = [p.detach() for p in ema_update.module]
    torch.testing.assert_close(list(optimizer.ema_parameters()), expected)
    trained = [p.detach().clone() for p in ours]
    with optimizer.swap_ema():
        torch.testing.assert_close([p.detach() for p in ours], expected)
    assert all(map(torch.equal, ours, trained))
    fresh = case.fused(ours, backend="reference")
    fresh.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(list(fresh.ema_parameters()), expected)


@pytest.mark.feature("step in backward")
@each_class
def test_step_in_backward(case):
    """Guard against gradients that outlive backward, with an optimizer in each parameter's hook."""
    results = []
    for cls in (case.fused, case.torch_class):
        torch.manual_seed(0)
        model = Model()
        optimizers = {p: cls([p]) for p in model.parameters()}

        def hook(param, optimizers=optimizers):
            optimizers[param].step()
            optimizers[param].zero_grad()

        for param in model.parameters():
            param.register_post_accumulate_grad_hook(hook)
        for seed in range(3):
            model(batch(seed)).square().mean().backward()
            assert all(p.grad is None for p in model.parameters())
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.feature("torch.compile")
@each_class
def test_compiled_training_step(case):
    """Guard against recompilation at each step, and results that a compiled caller misses."""
    torch._dynamo.reset()
    results = []
    with warnings.catch_warnings():
        # torch's own, from its compiler and from tracing the models
        warnings.simplefilter("ignore")
        for compiled in (True, False):
            model, optimizer = models(case)[0]
            step = torch.compile(train, backend="eager") if compiled else train
            for seed in range(4):
                step(model, optimizer, seed)
            results.append([p.detach() for p in model.parameters()])
            if compiled:
                states = [state_of(optimizer, p) for p in model.parameters()]
                assert any(states) or case.fused.__name__ == "SGD"
    torch._dynamo.reset()
    torch.testing.assert_close(*results)
    model, optimizer = models(case)[1]
    for seed in range(4):
        train(model, optimizer, seed)
    torch.testing.assert_close(results[0], [p.detach() for p in model.parameters()])


@pytest.mark.feature("differentiable")
@each_class
def test_differentiable(case):
    """Guard against a silent ``differentiable``: refused in the defaults and in a group."""
    params = parameters(values([(2,)], torch.float64))
    with pytest.raises(ValueError, match="differentiable must be False"):
        case.fused(params, differentiable=True)
    with pytest.raises(ValueError, match="differentiable must be False"):
        case.fused([{"params": params, "differentiable": True}])
    assert not case.fused(params, differentiable=False).defaults["differentiable"]
