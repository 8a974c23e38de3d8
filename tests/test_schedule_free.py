"""The two modes of the schedule-free optimizers, and the limits of their average.

Faults tried by hand: a switch made twice, ``1 - momentum`` in both directions, a z that starts at
zero, weights that loading rounds to the dtype of the parameter.
"""

import copy
import io

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values

from fused_optim import SGD, AdamW, ScheduleFreeAdamW, ScheduleFreeSGD
from fused_optim.testing.closeness import assert_same_bits

CLASSES = [ScheduleFreeAdamW, ScheduleFreeSGD]
SHAPES = [(1,), (33, 5), (0,), ()]


def steps(optimizer, params, count, first=0):
    for step in range(first, first + count):
        set_grads(params, values(SHAPES, params[0].dtype, seed=100 + step))
        optimizer.step()


def trained(cls, dtype=torch.float64, count=20, **options):
    params = parameters(values(SHAPES, dtype))
    optimizer = cls(params, 0.1, **options)
    steps(optimizer, params, count)
    return params, optimizer


def copied(params):
    return [p.detach().clone() for p in params]


def close(ours, theirs, bound=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


def test_sgd_averages_the_iterates_of_plain_sgd():
    """Guard against other weights: with equal ones x is the mean of all z."""
    plain = parameters(values(SHAPES, torch.float64))
    descent = SGD(plain, 0.1)
    total = [torch.zeros_like(p) for p in plain]
    for step in range(20):
        steps(descent, plain, 1, step)
        total = [t + p.detach() for t, p in zip(total, plain, strict=True)]
    params, optimizer = trained(ScheduleFreeSGD, weight_lr_power=0.0)
    close([optimizer.state[p]["z"] for p in params], copied(plain))
    optimizer.eval()
    close(copied(params), [t / 20 for t in total])


def test_z_of_adamw_is_adam_without_momentum():
    plain = parameters(values(SHAPES, torch.float64))
    steps(AdamW(plain, 0.1, betas=(0.0, 0.99), eps=0.0, weight_decay=0.0), plain, 20)
    params, optimizer = trained(ScheduleFreeAdamW, betas=(0.9, 0.99), eps=0.0)
    close([optimizer.state[p]["z"] for p in params], copied(plain))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_first_step_leaves_all_three_points_in_one(cls):
    params, optimizer = trained(cls, count=1)
    z = [optimizer.state[p]["z"] for p in params]
    close(copied(params), z)
    optimizer.eval()
    close(copied(params), z)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_modes_are_idempotent_and_inverse(cls, dtype):
    params, optimizer = trained(cls, dtype)
    y = copied(params)
    optimizer.train()
    assert all(torch.equal(p, before) for p, before in zip(params, y, strict=True))
    optimizer.eval()
    x = copied(params)
    assert not torch.equal(x[1], y[1])
    optimizer.eval()
    assert all(torch.equal(p, before) for p, before in zip(params, x, strict=True))
    optimizer.train()
    close(copied(params), y, 1e-12 if dtype is torch.float64 else 0.05)
    assert all(p._version > 1 for p in params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", CLASSES)
def test_no_step_in_eval_mode(cls, backend):
    params, optimizer = trained(cls, torch.float32, 2, backend=backend)
    optimizer.eval()
    before = copied(params), copy.deepcopy(optimizer.state_dict())
    called = []
    with pytest.raises(RuntimeError, match="step\\(\\) in eval mode: the parameters are the av"):
        optimizer.step(lambda: called.append(1))
    assert not called
    assert all(torch.equal(p, b) for p, b in zip(params, before[0], strict=True))
    assert repr(optimizer.state_dict()) == repr(before[1])


def test_a_group_that_is_in_the_other_mode():
    _, optimizer = trained(ScheduleFreeSGD)
    optimizer.eval()
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    with pytest.raises(RuntimeError, match="in eval mode"):
        optimizer.step()
    optimizer.train()
    optimizer.step()


def test_modes_before_the_first_step_change_nothing():
    params = parameters(values(SHAPES, torch.float32))
    before = copied(params)
    optimizer = ScheduleFreeAdamW(params)
    optimizer.eval()
    optimizer.train()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_resuming_from_a_checkpoint_in_eval_mode(cls, dtype):
    """Guard against a mode that a checkpoint loses."""
    params, optimizer = trained(cls, dtype, warmup_steps=30, r=0.5, backend="reference")
    optimizer.eval()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = parameters(copied(params))
    resumed = cls(others, backend="reference")
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for run, its in ((optimizer, params), (resumed, others)):
        assert not run.param_groups[0]["train_mode"]
        run.train()
        steps(run, its, 10, first=20)
    for param, other in zip(params, others, strict=True):
        assert_same_bits("param", other.detach(), param.detach())
        for name, value in optimizer.state[param].items():
            assert_same_bits(name, resumed.state[other][name], value)


def test_a_rate_of_zero_moves_nothing():
    """Guard against NaN from a weight of 0 / 0."""
    params = parameters(values(SHAPES, torch.float32))
    before = copied(params)
    optimizer = ScheduleFreeSGD(params, 0.0)
    steps(optimizer, params, 2)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    optimizer.param_groups[0]["lr"] = 0.1
    steps(optimizer, params, 2)
    assert all(p.isfinite().all() for p in params)


def test_modes_within_swap_ema_are_refused():
    _, optimizer = trained(ScheduleFreeSGD, ema_decay=0.9)
    with optimizer.swap_ema(), pytest.raises(RuntimeError, match=r"eval\(\) within swap_ema\(\)"):
        optimizer.eval()
