"""Checkpoints with and without each entry: loading takes over some options and keeps others."""

import copy

import pytest
import torch
from helpers.models import BACKENDS, exact_values, parameters

import fused_optim
from fused_optim import SGD, AdamW, ScheduleFreeAdamW
from fused_optim.options import GROUP_DEFAULTS, get_option
from fused_optim.testing.closeness import assert_same_bits

BF16 = torch.bfloat16
SHAPES = [(64,), (5, 3)]
on_each = pytest.mark.parametrize("backend", BACKENDS)
# a value of each option that no default has
OTHER = {
    "max_grad_norm": 0.5,
    "max_grad_value": 0.25,
    "l1": 0.125,
    "nonfinite": "skip",
    "ema_decay": 0.5,
    "cautious_decay": True,
    "backend": "reference",
    "weights": "split",
    "states": "bf16",
    "seed": 7,
    "count_stalled": True,
}
# written out, as a test that reads the library's own list agrees with every list
OF_THE_OPTIMIZER = {"backend", "weights", "states", "count_stalled"}


def trained(steps=2, dtype=torch.float32, cls=AdamW, **options):
    params = parameters(exact_values(SHAPES, dtype))
    optimizer = cls(params, **{"lr": 0.125, "backend": "reference", **options})
    for step in range(steps):
        for param, grad in zip(params, exact_values(SHAPES, dtype, step), strict=True):
            param.grad = grad
        optimizer.step()
    return params, optimizer


def test_every_option_is_tried():
    assert OTHER.keys() == GROUP_DEFAULTS.keys()
    assert all(OTHER[name] != default for name, default in GROUP_DEFAULTS.items())


@pytest.mark.parametrize("name", sorted(OTHER))
def test_an_option_comes_along_unless_it_belongs_to_the_optimizer(name):
    """Guard against device and formats that a checkpoint changes, and options that it drops."""
    saved = trained(1, BF16, **{"backend": "auto", name: OTHER[name]})[1].state_dict()
    _, loaded = trained(0, BF16, backend="auto")
    loaded.load_state_dict(saved)
    expected = GROUP_DEFAULTS[name] if name in OF_THE_OPTIMIZER else OTHER[name]
    assert [get_option(group, name) for group in loaded.param_groups] == [expected]


@pytest.mark.parametrize("name", sorted(OTHER))
def test_a_checkpoint_without_an_option_leaves_it(name):
    """Guard against a resume from torch that turns clipping, averages or formats off."""
    saved = trained(1, BF16)[1].state_dict()
    for group in saved["param_groups"]:
        assert group.pop(name, "reference") == "reference"  # a default is not listed
    _, loaded = trained(0, BF16, **{name: OTHER[name]})
    loaded.load_state_dict(saved)
    assert [group[name] for group in loaded.param_groups] == [OTHER[name]]


@on_each
@pytest.mark.parametrize("weights", ["plain", "split", "master"])
def test_the_average_stays_float32(backend, weights):
    """Guard against an average that loading casts to the parameter's dtype."""
    params, optimizer = trained(
        3, BF16, weights=weights, states="fp32", ema_decay=0.5, backend=backend
    )
    before = [average.clone() for average in optimizer.ema_parameters()]
    assert {average.dtype for average in before} == {torch.float32}
    others = parameters(params)
    loaded = AdamW(others, weights=weights, states="fp32", ema_decay=0.5, backend=backend, lr=0.125)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ours, expected in zip(loaded.ema_parameters(), before, strict=True):
        assert_same_bits("ema", ours, expected)


@pytest.mark.parametrize("format", ["own", "torch"])
def test_entries_of_others_stay(format):
    """Guard against states of a user, or of another library, that a checkpoint loses."""
    params, optimizer = trained(1)
    optimizer.state[params[0]]["mask"] = torch.ones(3)
    optimizer.param_groups[0]["name"] = "embedding"
    saved = optimizer.state_dict(format=format)
    _, loaded = trained(0)
    loaded.load_state_dict(saved)
    first = loaded.param_groups[0]["params"][0]
    assert loaded.state[first]["mask"].tolist() == [1.0] * 3
    assert loaded.param_groups[0]["name"] == "embedding"


def test_from_torch_shares_tensors_but_not_dicts():
    """Guard against entries of ours, such as an average, that appear in torch's optimizer."""
    params = parameters(exact_values(SHAPES, torch.float32))
    theirs = torch.optim.AdamW(params, 0.125)
    for param in params:
        param.grad = torch.ones_like(param)
    theirs.step()
    ours = fused_optim.from_torch(theirs, ema_decay=0.5, backend="reference")
    ours.step()
    for param in params:
        assert theirs.state[param].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert theirs.state[param]["exp_avg"] is ours.state[param]["exp_avg"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_count_keeps_its_dtype(dtype):
    """Guard against a count of float64 that loading makes one of the default dtype."""
    _, optimizer = trained(1)
    for state in optimizer.state.values():
        state["step"] = state["step"].to(dtype)
    saved = copy.deepcopy(optimizer.state_dict())
    _, loaded = trained(0)
    loaded.load_state_dict(saved)
    for param in loaded.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    loaded.step()
    assert [state["step"].dtype for state in loaded.state.values()] == [dtype] * 2
    assert [state["step"].item() for state in loaded.state.values()] == [2.0] * 2


@on_each
def test_train_and_eval_write_weights_of_our_own(backend):
    """Guard against a switch of a split weight that a checkpoint sees as an edit from outside."""
    weights = []
    for saves in (False, True):
        params, optimizer = trained(
            3, BF16, ScheduleFreeAdamW, weights="split", backend=backend, lr=0.01
        )
        optimizer.eval()
        if saves:
            others = parameters(params)
            copied = ScheduleFreeAdamW(others, weights="split", backend=backend, lr=0.01)
            copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            params, optimizer = others, copied
        optimizer.train()
        for param, grad in zip(params, exact_values(SHAPES, BF16, 9), strict=True):
            param.grad = grad
        optimizer.step()
        weights.append([(p.detach().clone(), optimizer.state[p]["remainder"]) for p in params])
    for (ours, low), (expected, expected_low) in zip(*weights, strict=True):
        assert_same_bits("param", ours, expected)
        assert_same_bits("remainder", low, expected_low)


@on_each
def test_a_parameter_that_comes_late_starts_its_own_average(backend):
    """Guard against a batch of rows whose averages begin at different steps."""
    params = parameters(exact_values([(8,), (8,)], torch.float32))
    optimizer = SGD(params, lr=0.5, ema_decay=0.75, backend=backend)
    expected = None
    for step in range(3):
        params[0].grad = torch.ones(8)
        params[1].grad = torch.ones(8) if step else None
        optimizer.step()
        now = params[1].detach().clone()
        if step == 1:
            expected = now
        elif step == 2:
            expected = expected + 0.25 * (now - expected)
    assert_same_bits("ema", list(optimizer.ema_parameters())[1], expected)
