"""Groups and states that the user edits between steps, compared with torch's.

Faults guarded against: options read once, at the first step; a rule chosen once for a group; a
state kept by the identity of its tensor; counts in float32 whatever the default dtype.
"""

import copy

import pytest
import torch
from helpers.models import parameters, state_of, values
from helpers.torch_pair import CLASSES, Pair, each_case, each_class
from helpers.versions import NEEDS_LAZY_ADAGRAD

from fused_optim.testing.exact_runs import default_dtype

EDITS = {
    "lr": 0.05,
    "betas": (0.5, 0.8),
    "eps": 1e-2,
    "weight_decay": 0.2,
    "momentum": 0.5,
    "dampening": 0.3,
    "maximize": True,
    "alpha": 0.7,
    "rho": 0.5,
    "lr_decay": 0.5,
    "momentum_decay": 0.2,
    "lambd": 0.01,
    "t0": 3,
    "decoupled_weight_decay": True,
    "nesterov": True,
    "amsgrad": False,
    "centered": False,
}


def can_be_edited(case, group, name):
    """Return whether torch itself can change an option in training, with the state it has."""
    if name == "momentum" and case.fused.__name__ == "RMSprop":
        return group["momentum"] > 0
    if name == "nesterov":
        return group["momentum"] > 0 and group["dampening"] == 0
    if name == "dampening":
        return not group["nesterov"]
    if name == "decoupled_weight_decay":
        return case.fused.__name__ != "AdamW"
    return True


@pytest.mark.feature("editing groups")
@each_case
def test_edited_options_hold_from_the_next_step(case):
    pair = Pair(case)
    for name, value in EDITS.items():
        groups = [optimizer.param_groups[0] for optimizer in pair.optimizers]
        if name in groups[1] and can_be_edited(case, groups[1], name):
            pair.step(2)
            for group in groups:
                group[name] = value
            pair.step(2)
    assert pair.seed > 4


@pytest.mark.feature("editing groups")
@each_class
def test_edits_of_one_group_leave_the_other(case):
    def apart(params):
        return [{"params": params[:1]}, {"params": params[1:]}]

    pair = Pair(case, group=apart)
    pair.step(1)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.param_groups[1]["maximize"] = True
    pair.step(2)


@pytest.mark.feature("group surgery")
@each_class
def test_moved_and_removed(case):
    """Guard against a state lost with a move, and a parameter without group that moves."""

    def apart(params):
        return [{"params": params[:1], "lr": 0.2}, {"params": params[1:], "weight_decay": 0.3}]

    pair = Pair(case, group=apart)
    pair.step(2)
    for optimizer in pair.optimizers:
        first, second = (group["params"] for group in optimizer.param_groups)
        first.append(second.pop(0))
    pair.step(2)
    rests = [p.detach().clone() for p in pair.params[0][2:]]
    for optimizer in pair.optimizers:
        del optimizer.param_groups[1]
    pair.step(2)
    assert all(torch.equal(p, r) for p, r in zip(pair.params[0][2:], rests, strict=True))


@pytest.mark.feature("group surgery")
@each_class
def test_added_mid_training(case, request):
    """Guard against a shared count: a parameter that comes late has its own."""
    if case.fused.__name__ == "Adagrad":
        request.applymarker(NEEDS_LAZY_ADAGRAD)
    pair = Pair(case)
    pair.step(3)
    for optimizer, params in pair.both:
        params += parameters(values([(7,)], torch.float64, 5))
        optimizer.add_param_group({"params": params[-1], "lr": 0.03})
    pair.step(3)
    counts = [state_of(pair.optimizers[0], p).get("step", 0) for p in pair.params[0]]
    assert counts[0] == 6 or counts[0] == 0
    assert counts[-1] == 3 or counts[-1] == 0


@pytest.mark.feature("Tensor lr")
@each_case
def test_tensor_lr(case):
    """Guard against a Tensor lr that is copied or written; it may be filled or replaced."""
    rate = torch.tensor(0.04, dtype=torch.float64)
    pair = Pair(case)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] = rate
    pair.step(2)
    rate.fill_(0.2)
    pair.step(2)
    assert rate == 0.2
    assert pair.optimizers[0].param_groups[0]["lr"] is rate
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.3, dtype=torch.float64)
    pair.step(2)


@pytest.mark.feature("Tensor lr")
@each_class
def test_a_tensor_lr_of_one_element_and_a_dimension(case):
    """Guard against another result than with a float; some of torch's take 0-dim ones only."""
    results = []
    for rate in (0.25, torch.tensor([0.25])):
        pair = Pair(case, lr=0.25)
        pair.optimizers[0].param_groups[0]["lr"] = rate
        pair.step(2)
        results.append(pair.params[0])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.feature("Tensor betas")
@pytest.mark.parametrize(
    "case", [c for c in CLASSES if c.fused.__name__ in ("Adam", "AdamW")], ids=lambda c: c.name
)
def test_tensor_betas(case):
    """Guard against betas read once: where torch allows tensors they are changed in place."""
    betas = [torch.tensor(b, dtype=torch.float64) for b in (0.8, 0.9)]
    pair = Pair(case)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["betas"] = tuple(betas)
    pair.step(2)
    betas[0].fill_(0.5)
    pair.step(2)
    assert betas[1] == 0.9


@pytest.mark.feature("editing state")
@each_case
def test_edited_states_are_honoured(case):
    pair = Pair(case)
    pair.step(3)

    for change in (halve, replace):
        edit_states(pair, change)
    if case.fused.__name__ == "SGD":
        edit_states(pair, lambda state: state.update(momentum_buffer=None))
        edit_states(pair, lambda state: state.pop("momentum_buffer", None))


def edit_states(pair, change):
    for optimizer, params in pair.both:
        for param in params:
            if param in optimizer.state:
                change(optimizer.state[param])
    pair.step(2)


def halve(state):
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            value.add_(2) if name == "step" else value.mul_(0.5)


def replace(state):
    for name, value in list(state.items()):
        if isinstance(value, torch.Tensor):
            state[name] = value + 3 if name == "step" else value * 0.25


@pytest.mark.feature("editing state")
@each_case
def test_deleted_states_start_over(case, request):
    if case.fused.__name__ == "Adagrad":
        request.applymarker(NEEDS_LAZY_ADAGRAD)
    pair = Pair(case)
    pair.step(3)
    for optimizer, params in pair.both:
        optimizer.state.pop(params[0], None)
    pair.step(2)
    for optimizer in pair.optimizers:
        optimizer.state.clear()
    pair.step(2)


@pytest.mark.feature("lazy state")
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@each_case
def test_lazy_state(case, default):
    """Guard against states before the first step, and other keys or dtypes than torch's."""
    with default_dtype(default):
        for dtype in (torch.float32, torch.bfloat16):
            pair = Pair(case, values([(3,), (2, 2)], dtype))
            ours, theirs = pair.optimizers
            assert bool(ours.state) == bool(theirs.state) == (case.fused.__name__ == "Adagrad")
            pair.backward(only=[1])
            for optimizer in pair.optimizers:
                optimizer.step()
            assert len(ours.state) == len(theirs.state)
            mine, other = (state_of(o, params[1]) for o, params in pair.both)
            extra = {"step"} if case.options.get("dampening") else set()
            assert mine.keys() == other.keys() | extra
            for name in other:
                assert mine[name].dtype == other[name].dtype
                assert mine[name].shape == other[name].shape
                assert mine[name].is_contiguous()


@pytest.mark.feature("lazy state")
@each_class
def test_state_follows_the_layout_of_the_parameter(case):
    start = [torch.randn(2, 3, 4, 5).to(torch.float64, memory_format=torch.channels_last)]
    pair = Pair(case, start)
    pair.step(1)
    mine, other = (state_of(o, params[0]) for o, params in pair.both)
    assert {n: v.stride() for n, v in mine.items()} == {n: v.stride() for n, v in other.items()}


@pytest.mark.feature("lazy state")
@each_class
def test_groups_are_not_those_of_the_caller(case):
    """Guard against defaults shared among groups, and against dicts other than torch keeps."""
    pair = Pair(case)
    for optimizer, params in pair.both:
        given = {"params": parameters(values([(2,)], torch.float64))}
        optimizer.add_param_group(given)
        assert optimizer.param_groups[1] is given
        optimizer.param_groups[1]["lr"] = 0.125
        assert optimizer.param_groups[0]["lr"] == copy.copy(optimizer.defaults["lr"])
        assert optimizer.param_groups[0]["params"] is not params
