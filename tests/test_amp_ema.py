"""Unscaling inside the step, and the average of the parameters."""

import math

import pytest
import torch
from models import BACKENDS, give, parameters, values
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fused_optim import SGD, AdamW


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_grad_scaler(backend, clip):
    """Beside torch: scaled losses, an Inf at the first and at a later step, skips not counted.

    Guards the norm of the unscaled gradients, the untouched gradient and the scale's own updates.
    """
    start = values([(30,), (4, 5)], torch.float32)
    ours, theirs = parameters(start), parameters(start)
    fused, peer = AdamW(ours, max_grad_norm=clip, backend=backend), torch.optim.AdamW(theirs)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)]
    for step in range(6):
        grads = values([(30,), (4, 5)], torch.float32, step)
        if step in (0, 3):
            grads[1][2, 2] = math.inf
        for scaler, params in zip(scalers, (ours, theirs), strict=True):
            scaler.scale(torch.zeros(()))  # what backward would have been called on
            give(params, [g * scaler.get_scale() for g in grads])
        kept = [p.grad.clone() for p in ours]
        scalers[0].step(fused)
        scalers[1].unscale_(peer)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        scalers[1].step(peer)
        for scaler in scalers:
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert fused.skipped == (step in (0, 3))
        assert all(torch.equal(p.grad, k) for p, k in zip(ours, kept, strict=True))
        torch.testing.assert_close(ours, theirs)
    assert fused.state[ours[0]]["step"] == 4
    assert not hasattr(fused, "grad_scale")


@pytest.mark.parametrize("backend", BACKENDS)
def test_unscale_and_external_clipping(backend):
    """After ``unscale_`` the step must not unscale again: ``found_inf`` comes without a scale."""
    ours, theirs = (parameters(values([(30,)], torch.float32)) for _ in range(2))
    fused, peer = SGD(ours, lr=0.1, backend=backend), torch.optim.SGD(theirs, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))
    grads = values([(30,)], torch.float32, 1)
    give(ours, [64 * grads[0]])
    give(theirs, grads)
    scaler.unscale_(fused)
    for params in (ours, theirs):
        torch.nn.utils.clip_grad_norm_(params, 0.1)
    scaler.step(fused)
    peer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_average_is_that_of_averaged_model(backend, cls):
    """Guards the first value (a copy), the weight of the new one, and a skipped step."""
    model = torch.nn.Linear(7, 5)
    optimizer = cls(model.parameters(), lr=0.1, ema_decay=0.9, nonfinite="skip", backend=backend)
    peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    assert list(optimizer.ema_parameters()) == []
    for step in range(5):
        give(list(model.parameters()), values([(5, 7), (5,)], torch.float32, step))
        if step == 2:
            model.bias.grad[0] = math.nan
        optimizer.step()
        if step != 2:
            peer.update_parameters(model)
        averages = list(optimizer.ema_parameters())
        torch.testing.assert_close(averages, [p.detach() for p in peer.module.parameters()])
    assert not torch.equal(averages[0], model.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_swap_ema(backend):
    params = parameters(values([(9,), (3, 3)], torch.float32))
    groups = [{"params": params[:1], "ema_decay": 0.5}, {"params": params[1:]}]
    optimizer = SGD(groups, lr=0.1, backend=backend)
    for _ in range(3):
        give(params, [torch.ones(9), torch.ones(3, 3)])
        optimizer.step()
    (average,) = (a.clone() for a in optimizer.ema_parameters())
    before = [p.detach().clone() for p in params]

    def body():
        with optimizer.swap_ema():
            assert torch.equal(params[0], average)
            assert torch.equal(params[1], before[1])
            with pytest.raises(RuntimeError, match="swap_ema"):
                optimizer.step()
            with pytest.raises(RuntimeError, match="entered already"), optimizer.swap_ema():
                pass
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    loaded = SGD([{"params": params[:1]}, {"params": params[1:]}], backend=backend)
    loaded.load_state_dict(optimizer.state_dict())
    assert torch.equal(next(loaded.ema_parameters()), average)
    assert loaded.param_groups[0]["ema_decay"] == 0.5


def test_twins_average_alike():
    results = []
    for backend in BACKENDS:
        params = parameters(values([(1025,), (2,)], torch.bfloat16))
        optimizer = AdamW(params, lr=0.1, ema_decay=0.75, backend=backend)
        for step in range(3):
            give(params, values([(1025,), (2,)], torch.bfloat16, step))
            optimizer.step()
        results.append(torch.cat(list(optimizer.ema_parameters())))
    assert torch.equal(*results)
