"""Checkpoints between torch.optim and ours, in both directions and mid-training.

Faults guarded against: loading that writes into the dict, a cast of the count, a group option lost
on the way, a copy that shares its state with the original.
"""

import copy
import io
import pickle

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values
from helpers.torch_pair import IN_TORCH, Pair, each_case, each_class

from fused_optim.options import GROUP_DEFAULTS
from fused_optim.testing.cases import find_case, get_name

ADAMS = [case for case in IN_TORCH if case.fused.__name__ in ("Adam", "AdamW")]


def cloned(value):
    """Return a copy of a checkpoint that shares no tensor with it."""
    return copy.deepcopy(value)


def same(one, other):
    """Return whether two checkpoints hold the same keys, types and bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.feature("checkpoints of torch")
@each_case
def test_torch_to_ours_mid_training(case):
    """Guard against a loaded state that goes on otherwise than torch without a break."""
    pair = Pair(case)
    pair.step(4)
    saved = pair.optimizers[1].state_dict()
    resumed = case.fused(pair.params[0], lr=7.0, backend="reference")
    resumed.load_state_dict(cloned(saved))
    pair.optimizers = resumed, pair.optimizers[1]
    assert resumed.param_groups[0]["backend"] == "reference"
    pair.step(10)


@pytest.mark.feature("checkpoints for torch")
@each_case
def test_ours_to_torch_mid_training(case):
    pair = Pair(case)
    pair.step(4)
    resumed = case.torch_class(pair.params[1], lr=7.0)
    resumed.load_state_dict(cloned(pair.optimizers[0].state_dict()))
    pair.optimizers = pair.optimizers[0], resumed
    pair.step(10)


@pytest.mark.feature("checkpoints for torch")
@each_case
def test_the_checkpoint_is_that_of_torch(case):
    """Guard against other keys, another order or other containers, before and after steps."""
    pair = Pair(case, group=lambda p: [{"params": p[:2]}, {"params": p[2:], "lr": 0.25}])
    for steps in (0, 2):
        for _ in range(steps):
            pair.step(1, only=[0, 1, 3])
        ours, theirs = (optimizer.state_dict() for optimizer in pair.optimizers)
        assert ours.keys() == theirs.keys()
        assert list(ours["state"]) == list(theirs["state"]) or case.options.get("dampening")
        for mine, other in zip(ours["param_groups"], theirs["param_groups"], strict=True):
            assert type(mine) is dict
            assert {k: v for k, v in mine.items() if k not in GROUP_DEFAULTS} == other


@pytest.mark.feature("casting, moving, aliasing")
@each_class
@pytest.mark.parametrize("flag", [None, "fused", "capturable"])
def test_loading_casts_and_aliases_as_torch(case, flag):
    """Guard against casts of ``step``, and against copies where torch shares.

    Where torch casts the states of a parameter it shares the count alone, with which two live
    optimizers would count each other's steps: then nothing is shared here.
    """
    pair = Pair(case)
    pair.step(2)
    saved = pair.optimizers[1].state_dict()
    if flag is not None:
        saved["param_groups"][0][flag] = True
    for dtype in (torch.float64, torch.bfloat16):
        before, loaded = cloned(saved), []
        for cls in (case.fused, case.torch_class):
            params = parameters([p.detach() for p in pair.params[0]], dtype)
            optimizer = cls(params)
            given = saved if flag is None else cloned(saved)
            optimizer.load_state_dict(given)
            loaded.append([optimizer.state.get(p, {}) for p in params])
            own = given["state"].values()
            loaded[-1].append(
                {
                    (i, name): value is entry[name]
                    for i, entry in enumerate(own)
                    for name, value in optimizer.state[params[i]].items()
                }
            )
        assert same(saved, before)
        shared, theirs = (states.pop() for states in loaded)
        whole = {i: all(theirs[key] for key in theirs if key[0] == i) for i, _ in theirs}
        assert shared == {(i, name): whole[i] for i, name in theirs}
        assert dtype is torch.bfloat16 or all(whole.values()) or case.name in ("nadam", "asgd")
        assert same(*loaded)


@pytest.mark.feature("casting, moving, aliasing")
@each_class
def test_an_option_of_the_checkpoint_is_not_shared(case):
    """Guard against a schedule of one optimizer that changes the other through its groups."""
    pair = Pair(case, lr=torch.tensor(0.1, dtype=torch.float64))
    for optimizer in pair.optimizers:
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["lr"].fill_(0.5)
        optimizer.param_groups[0]["weight_decay"] = 0.25
        assert saved["param_groups"][0]["lr"] == 0.1
        assert saved["param_groups"][0]["weight_decay"] != 0.25
    pair.step(2)


@pytest.mark.feature("casting, moving, aliasing")
@each_class
def test_loading_moves_to_the_device_of_the_parameter(case):
    """Guard against states on another device; meta is used for an accelerator."""
    pair = Pair(case)
    pair.step(2)
    devices = []
    for optimizer, params in pair.both:
        there = [torch.empty_like(p, device="meta", requires_grad=True) for p in params]
        moved = type(optimizer)(there)
        moved.load_state_dict(optimizer.state_dict())
        states = [state_of(moved, p) for p in there]
        devices.append([{n: v.device.type for n, v in state.items()} for state in states])
    assert devices[0] == devices[1]


@pytest.mark.feature("old formats")
@each_case
def test_numeric_counts(case):
    """Guard against refusing old checkpoints, whose counts are Python numbers."""
    pair = Pair(case)
    pair.step(3)
    saved = cloned(pair.optimizers[1].state_dict())
    for state in saved["state"].values():
        for name in ("step", "mu_product", "eta", "mu"):
            if name in state:
                state[name] = int(state[name]) if name == "step" else float(state[name])
    before = cloned(saved)
    for optimizer in pair.optimizers:
        optimizer.load_state_dict(cloned(saved))
        for state in optimizer.state_dict()["state"].values():
            assert all(value is None or torch.is_tensor(value) for value in state.values())
    assert same(saved, before)
    pair.step(3)


def torch_takes(case, saved, key):
    """Return whether torch loads and steps without a group's ``key``, and the value it uses."""
    params = parameters(values([(2,)], torch.float64))
    torch_optimizer = case.torch_class(params, **case.options)
    del saved["param_groups"][0][key]
    torch_optimizer.load_state_dict(saved)
    return (
        (True, torch_optimizer.param_groups[0][key])
        if key in torch_optimizer.param_groups[0]
        else (False, None)
    )


@pytest.mark.feature("old formats")
@each_case
def test_missing_keys(case):
    """Guard against another value than torch's for an option that a checkpoint lacks."""
    params = parameters(values([(2,)], torch.float64))
    torch_optimizer = case.torch_class(params, **case.options)
    tried = 0
    for key in torch_optimizer.param_groups[0].keys() - {"params"}:
        taken, value = torch_takes(case, cloned(torch_optimizer.state_dict()), key)
        if not taken:
            continue
        saved = cloned(torch_optimizer.state_dict())
        del saved["param_groups"][0][key]
        optimizer = case.fused(params, **case.options)
        optimizer.load_state_dict(saved)
        got = optimizer.param_groups[0][key]
        assert got == value or (not got and not value), key
        assert key not in saved["param_groups"][0]
        tried += 1
    assert tried >= 3


@pytest.mark.feature("old formats")
@each_class
def test_our_options_survive_a_checkpoint_of_torch(case):
    """Guard against options of a group lost by loading a dict that lacks them."""
    params = parameters(values([(2,), (3,)], torch.float64))
    groups = [{"params": params[:1], "l1": 0.5}, {"params": params[1:], "nonfinite": "skip"}]
    optimizer = case.fused(groups, max_grad_norm=2.0)
    torch_optimizer = case.torch_class([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.load_state_dict(torch_optimizer.state_dict())
    assert [group.get("l1") for group in optimizer.param_groups] == [0.5, None]
    assert [group.get("nonfinite") for group in optimizer.param_groups] == [None, "skip"]
    assert optimizer.max_grad_norm == 2.0


@pytest.mark.feature("mismatched groups")
@each_class
def test_mismatched_groups(case):
    """Guard against another error than torch's, or one that leaves changes."""
    pair = Pair(case)
    pair.step(2)
    fewer, more = pair.params[0][:-1], [{"params": [p]} for p in pair.params[0]]
    for wrong in (fewer, more):
        saved = case.torch_class(wrong).state_dict()
        errors = []
        for optimizer in pair.optimizers:
            before = cloned(optimizer.state_dict())
            with pytest.raises(ValueError, match="loaded state dict") as error:
                optimizer.load_state_dict(saved)
            errors.append(str(error.value))
            assert same(optimizer.state_dict(), before)
        assert errors[0] == errors[1]
    pair.step(2)


@pytest.mark.feature("torch.save and torch.load")
@each_case
def test_save_and_load_weights_only(case):
    """Guard against objects that ``weights_only=True`` refuses."""
    pair = Pair(case)
    pair.step(2)
    for i, (optimizer, params) in enumerate(pair.both):
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        fresh = type(optimizer)(params)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert fresh is not pair.optimizers[i]
        pair.optimizers = tuple(fresh if i == j else o for j, o in enumerate(pair.optimizers))
    pair.step(2)


@pytest.mark.feature("deepcopy and pickle")
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@each_case
def test_copies_mid_training(case, way):
    """Guard against a copy that shares parameters or state with the original."""
    pair = Pair(case)
    pair.step(2)
    before = cloned(pair.optimizers[0].state_dict())
    originals = pair.optimizers, pair.params
    copies = [
        copy.deepcopy(pack) if way == "deepcopy" else pickle.loads(pickle.dumps(pack))
        for pack in pair.both
    ]
    pair.optimizers = tuple(optimizer for optimizer, _ in copies)
    pair.params = tuple(params for _, params in copies)
    ours = pair.optimizers[0]
    assert ours.param_groups[0]["params"][0] is pair.params[0][0]
    assert "_engine" not in ours.__getstate__()
    pair.step(3)
    assert same(originals[0][0].state_dict(), before)
    pair.optimizers, pair.params = originals
    pair.step(2)


@pytest.mark.feature("deepcopy and pickle")
@each_class
def test_hooks_do_not_travel(case):
    """Guard against hooks that a copy takes along, which torch's does not."""
    pair = Pair(case)
    for optimizer in pair.optimizers:
        optimizer.register_step_pre_hook(lambda *_: pytest.fail("a hook of the original"))
        copied = copy.deepcopy(optimizer)
        copied.step()


@pytest.mark.feature("Adam and AdamW")
@pytest.mark.parametrize("case", ADAMS, ids=get_name)
def test_adam_and_adamw_take_each_other(case):
    """Guard against an AdamW that becomes coupled; Adam follows the checkpoint, as in torch."""
    other = find_case("AdamW" if case.class_name == "Adam" else "Adam")
    pair = Pair(case)
    pair.step(2)
    saved = cloned(pair.optimizers[1].state_dict())
    pair.optimizers = other.fused(pair.params[0]), other.torch_class(pair.params[1])
    for optimizer in pair.optimizers:
        optimizer.load_state_dict(cloned(saved))
    decoupled = [o.param_groups[0]["decoupled_weight_decay"] for o in pair.optimizers]
    assert decoupled[0] is decoupled[1]
    pair.step(3)


@pytest.mark.feature("checkpoints of torch")
@each_class
def test_checkpoints_of_bf16(case):
    """Guard against casts of the low-precision states that torch writes."""
    start = values([(40,)], torch.bfloat16)
    theirs, ours = parameters(start), parameters(start)
    torch_optimizer = case.torch_class(theirs)
    set_grads(theirs, values([(40,)], torch.bfloat16, 1))
    torch_optimizer.step()
    optimizer = case.fused(ours)
    saved = cloned(torch_optimizer.state_dict())
    optimizer.load_state_dict(saved)
    fresh = case.torch_class(theirs)
    fresh.load_state_dict(cloned(saved))
    assert same(state_of(optimizer, ours[0]), state_of(fresh, theirs[0]))
