"""Gradient scaling inside the step, and the exponential moving average of parameters."""

import copy
import math
import pickle

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fused_optim import SGD, AdamW


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_grad_scaler(backend, clip):
    """Guard against clipping scaled gradients, writing gradients, and counting skipped steps.

    Guards the norm of the unscaled gradients, the untouched gradient and the scale's own updates.
    """
    start = values([(30,), (4, 5)], torch.float32)
    ours, theirs = parameters(start), parameters(start)
    fused = AdamW(ours, max_grad_norm=clip, fused=True, backend=backend)
    torch_optimizer = torch.optim.AdamW(theirs)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)]
    for step in range(6):
        grads = values([(30,), (4, 5)], torch.float32, step)
        if step in (0, 3):
            grads[1][2, 2] = math.inf
        for scaler, params in zip(scalers, (ours, theirs), strict=True):
            scaler.scale(torch.zeros(()))  # the loss of a backward pass
            set_grads(params, [g * scaler.get_scale() for g in grads])
        scaled = [p.grad.clone() for p in ours]
        scalers[0].step(fused)
        scalers[1].unscale_(torch_optimizer)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        scalers[1].step(torch_optimizer)
        for scaler in scalers:
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert fused.skipped == (step in (0, 3))
        assert all(torch.equal(p.grad, k) for p, k in zip(ours, scaled, strict=True))
        torch.testing.assert_close(ours, theirs)
    assert fused.state[ours[0]]["step"] == 4
    assert not hasattr(fused, "grad_scale")


@pytest.mark.parametrize("backend", BACKENDS)
def test_unscale_and_external_clipping(backend):
    """Guard against unscaling twice: after ``unscale_``, ``found_inf`` comes without a scale."""
    ours, theirs = (parameters(values([(30,)], torch.float32)) for _ in range(2))
    fused = SGD(ours, lr=0.1, fused=True, backend=backend)
    torch_optimizer = torch.optim.SGD(theirs, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))
    grads = values([(30,)], torch.float32, 1)
    set_grads(ours, [64 * grads[0]])
    set_grads(theirs, grads)
    scaler.unscale_(fused)
    for params in (ours, theirs):
        torch.nn.utils.clip_grad_norm_(params, 0.1)
    scaler.step(fused)
    torch_optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_average_is_that_of_averaged_model(backend, cls):
    """Guard against a wrong first value (a copy), a wrong weight, and skipped steps averaged in."""
    model = torch.nn.Linear(7, 5)
    optimizer = cls(model.parameters(), lr=0.1, ema_decay=0.9, nonfinite="skip", backend=backend)
    torch_optimizer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    assert list(optimizer.ema_parameters()) == []
    for step in range(5):
        set_grads(list(model.parameters()), values([(5, 7), (5,)], torch.float32, step))
        if step == 2:
            model.bias.grad[0] = math.nan
        optimizer.step()
        if step != 2:
            torch_optimizer.update_parameters(model)
        averages = list(optimizer.ema_parameters())
        torch.testing.assert_close(
            averages, [p.detach() for p in torch_optimizer.module.parameters()]
        )
    assert not torch.equal(averages[0], model.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_swap_ema(backend):
    """Guard against parameters lost in the context, which an exception ends too."""
    params = parameters(values([(9,), (3, 3)], torch.float32))
    groups = [{"params": params[:1], "ema_decay": 0.5}, {"params": params[1:]}]
    optimizer = SGD(groups, lr=0.1, backend=backend)
    for _ in range(3):
        set_grads(params, [torch.ones(9), torch.ones(3, 3)])
        optimizer.step()
    (average,) = (a.clone() for a in optimizer.ema_parameters())
    before = [p.detach().clone() for p in params]

    def body():
        with optimizer.swap_ema():
            assert torch.equal(params[0], average)
            assert torch.equal(params[1], before[1])
            with pytest.raises(RuntimeError, match="swap_ema"):
                optimizer.step()
            with pytest.raises(RuntimeError, match="active already"), optimizer.swap_ema():
                pass
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    loaded = SGD([{"params": params[:1]}, {"params": params[1:]}], backend=backend)
    loaded.load_state_dict(optimizer.state_dict())
    assert torch.equal(next(loaded.ema_parameters()), average)
    assert loaded.param_groups[0]["ema_decay"] == 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_average_without_memory_is_the_parameter(backend):
    """Guard against a weight of 1 that is multiplied out, which rounds and turns Inf into NaN."""
    (param, frozen) = params = parameters(values([(1025,), (7,)], torch.float32))
    optimizer = SGD(params, lr=0.1, ema_decay=0.0, backend=backend)
    for step, scale in enumerate((1.0, 1e9, math.inf)):
        set_grads(params, [scale * g for g in values([(1025,), (7,)], torch.float32, step)])
        if step:
            frozen.grad = None
            frozen.data.mul_(1e9 / 3)
        optimizer.step()
        assert all(map(torch.equal, optimizer.ema_parameters(), params))
    param.data.fill_(1 / 3)
    set_grads(params, [torch.ones(1025), torch.ones(7)])
    optimizer.step()
    assert all(map(torch.equal, optimizer.ema_parameters(), params))


def test_both_backends_form_the_same_average():
    results = []
    for backend in BACKENDS:
        params = parameters(values([(1025,), (2,)], torch.bfloat16))
        optimizer = AdamW(params, lr=0.1, ema_decay=0.75, backend=backend)
        for step in range(3):
            set_grads(params, values([(1025,), (2,)], torch.bfloat16, step))
            optimizer.step()
        results.append(torch.cat(list(optimizer.ema_parameters())))
    assert torch.equal(*results)


FORMATS_OF_EMA = [
    (torch.float32, {}),
    (torch.bfloat16, {}),
    (torch.bfloat16, {"weights": "split", "states": "bf16"}),
]


def averaging(dtype, options):
    """Return a parameter after three steps, and its optimizer with an average."""
    params = parameters(values([(9,)], dtype))
    optimizer = AdamW(params, lr=0.1, ema_decay=0.5, backend="reference", **options)
    for step in range(3):
        set_grads(params, values([(9,)], dtype, step))
        optimizer.step()
    return params, optimizer


def snapshot(optimizer):
    """Return both checkpoint formats and the average, copied."""
    packed = [optimizer.state_dict(format=f)["state"][0] for f in ("own", "torch")]
    return copy.deepcopy([*packed, {"ema": next(optimizer.ema_parameters())}])


def assert_same_snapshot(result, expected):
    for ours, theirs in zip(result, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("dtype", "options"), FORMATS_OF_EMA)
def test_what_is_saved_within_swap_ema_is_what_is_saved_outside(dtype, options):
    """Guard against a checkpoint that holds the average instead of the parameter."""
    params, optimizer = averaging(dtype, options)
    before, own = snapshot(optimizer), params[0].detach().clone()
    with optimizer.swap_ema():
        assert not torch.equal(params[0], own)
        assert torch.equal(params[0], before[2]["ema"].to(dtype))
        assert_same_snapshot(snapshot(optimizer), before)
    assert torch.equal(params[0], own)
    assert_same_snapshot(snapshot(optimizer), before)


@pytest.mark.parametrize(("dtype", "options"), FORMATS_OF_EMA)
def test_a_load_within_swap_ema_shows_the_new_average(dtype, options):
    params, optimizer = averaging(dtype, options)
    own = params[0].detach().clone()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["ema"] = torch.full_like(saved["state"][0]["ema"], 3.0)
    with optimizer.swap_ema():
        optimizer.load_state_dict(saved)
        assert torch.equal(params[0], torch.full((9,), 3.0, dtype=dtype))
        with pytest.raises(RuntimeError, match="swap_ema"):
            optimizer.step()
        with pytest.raises(ValueError, match="different number of parameter groups"):
            optimizer.load_state_dict({"state": {}, "param_groups": []})
    assert torch.equal(params[0], own)
    assert torch.equal(next(optimizer.ema_parameters()).to(dtype), torch.full_like(own, 3.0))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pack: pickle.loads(pickle.dumps(pack))}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(("dtype", "options"), FORMATS_OF_EMA)
def test_a_copy_within_swap_ema_is_a_copy_from_outside(way, dtype, options):
    """Guard against a copy with the average's values, or one inside of the context."""
    params, optimizer = averaging(dtype, options)
    with optimizer.swap_ema():
        others, copied = COPIES[way]((params, optimizer))
    for ps, ours in ((params, optimizer), (others, copied)):
        set_grads(ps, values([(9,)], dtype, 7))
        ours.step()
    assert torch.equal(params[0], others[0])
    assert_same_snapshot(snapshot(copied), snapshot(optimizer))


def test_a_shallow_copy_shares_the_context():
    """Guard against steps within the context through a shallow copy, which shares parameters."""
    params, optimizer = averaging(torch.float32, {})
    own = params[0].detach().clone()
    with optimizer.swap_ema():
        copied = copy.copy(optimizer)
        assert not torch.equal(params[0], own)
        with pytest.raises(RuntimeError, match="swap_ema"):
            copied.step()
    assert torch.equal(params[0], own)
    copied.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", [("exp_avg", "exp_avg_sq"), ("exp_avg", "exp_avg_sq", "step")])
def test_moments_that_are_taken_away_start_anew_and_the_average_goes_on(backend, missing):
    """Guard against an average that starts again with the moments."""
    params = parameters([torch.zeros(40)])
    optimizer = AdamW(params, lr=0.25, weight_decay=0, eps=0, ema_decay=0.75, backend=backend)
    for _ in range(5):
        set_grads(params, [torch.ones(40)])
        optimizer.step()
    (average,) = (a.clone() for a in optimizer.ema_parameters())
    for _ in range(3):
        for name in missing:
            del optimizer.state[params[0]][name]
        before = params[0].detach().clone()
        set_grads(params, [torch.full((40,), 3.0)])
        optimizer.step()
        assert optimizer.state[params[0]]["step"] == 1
        torch.testing.assert_close(before - params[0], torch.full((40,), 0.25))
        average = average + 0.25 * (params[0].detach() - average)
        assert torch.equal(next(optimizer.ema_parameters()), average)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("freeze", ["no gradient", "requires_grad", "all frozen"])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {}), (torch.bfloat16, {"weights": "split"}), (torch.complex64, {})],
)
def test_the_average_of_a_frozen_layer_goes_on(backend, freeze, dtype, options):
    """Guard against a frozen layer whose average differs from that of a zero gradient."""
    start, runs = values([(40,), (7, 3)], dtype), []
    for frozen in (True, False):
        params = parameters(start)
        more = {"lr": 0.1, "ema_decay": 0.75, "nonfinite": "skip", "backend": backend}
        optimizer = SGD(params, **more, **options)
        for step in range(6):
            grads = values([(40,), (7, 3)], dtype, step)
            if step >= 2:
                grads[0] = None if frozen else torch.zeros_like(grads[0])
                if freeze == "requires_grad":
                    params[0].requires_grad_(not frozen)
                if freeze == "all frozen":
                    grads[1] = None if frozen else torch.zeros_like(grads[1])
                elif step == 4:
                    grads[1][0] = math.nan
            set_grads(params, grads)
            optimizer.step()
        pairs = list(optimizer.ema_pairs())
        assert [param for param, _ in pairs] == params
        runs.append([p.detach() for p in params] + [average for _, average in pairs])
    assert all(map(torch.equal, *runs))
    assert not torch.equal(runs[0][2], start[0].to(runs[0][2].dtype))


def test_pairs_leave_out_what_has_no_average_and_say_so():
    """Guard against pairs of parameters that were never updated, or without ``ema_decay``."""
    params = parameters(values([(5,), (5,), (5,)], torch.float32))
    groups = [{"params": params[:2]}, {"params": params[2:], "ema_decay": None}]
    optimizer = SGD(groups, lr=0.1, ema_decay=0.5)
    for _ in range(2):
        set_grads(params, [None, torch.ones(5), torch.ones(5)])
        optimizer.step()
    (pair,) = optimizer.ema_pairs()
    assert pair[0] is params[1]
    assert pair[1] is next(optimizer.ema_parameters())


def test_a_scaler_that_skips_skips_the_average_of_a_frozen_layer():
    params = parameters(values([(40,), (5,)], torch.float32))
    optimizer = SGD(params, lr=0.1, ema_decay=0.5)
    set_grads(params, [torch.ones(40), torch.ones(5)])
    optimizer.step()
    params[0].data += 1.0
    before = next(optimizer.ema_parameters()).clone()
    set_grads(params, [None, torch.ones(5)])
    optimizer.found_inf = torch.ones(1)
    optimizer.step()
    assert torch.equal(next(optimizer.ema_parameters()), before)
    optimizer.found_inf = torch.zeros(1)
    optimizer.step()
    assert not torch.equal(next(optimizer.ema_parameters()), before)
