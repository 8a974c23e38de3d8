"""``cautious_decay=True``: decoupled decay only where the update moves an element toward zero.

Faults tried by hand: the mask inverted, the sign of the new parameter instead of the old one, the
decay left in the rule as well, decay where the update is NaN, the option left out of the cache.
"""

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values

import fused_optim
from fused_optim import SGD, AdamW, Lion, Muon
from fused_optim.testing.cases import ONE_PER_CLASS
from fused_optim.testing.closeness import assert_same_bits

DECOUPLED = {
    "AdamW": {},
    "Adam": {"decoupled_weight_decay": True},
    "AdEMAMix": {},
    "Adan": {"no_prox": True},
    "Lion": {},
    "Muon": {},
    "NAdam": {"decoupled_weight_decay": True},
    "RAdam": {"decoupled_weight_decay": True},
    "StableAdamW": {},
}
RATE = {"lr": 0.25, "weight_decay": 0.5}  # lr * weight_decay is exact
SHAPE = (33, 65)


def make(name, params, **options):
    return getattr(fused_optim, name)(params, **RATE, **DECOUPLED[name], **options)


@pytest.mark.parametrize("name", DECOUPLED)
def test_decay_where_the_update_agrees(name):
    """Compare one step from a state with a step of the same rule without decay."""
    start, grads = values([SHAPE], torch.float64), values([SHAPE], torch.float64, seed=1)
    results = {}
    for decay, cautious in ((0.5, True), (0.0, False)):
        params = parameters(start)
        optimizer = make(name, params, backend="reference")
        optimizer.param_groups[0].update(weight_decay=decay, cautious_decay=cautious)
        set_grads(params, grads)
        optimizer.step()
        results[cautious] = params[0].detach()
    old, moved = start[0], results[False]
    agrees = (moved - old) * old <= 0
    assert 0.2 < agrees.double().mean() < 0.8
    torch.testing.assert_close(
        results[True], torch.where(agrees, moved - 0.125 * old, moved), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", DECOUPLED)
def test_kernels_equal_the_reference(name):
    runs = []
    for backend in BACKENDS:
        params = parameters(values([SHAPE, SHAPE], torch.bfloat16))
        optimizer = make(
            name, params, backend=backend, cautious_decay=True, weights="split", states="fp32"
        )
        for seed in range(3):
            set_grads(params, values([SHAPE, SHAPE], torch.bfloat16, seed=seed))
            optimizer.step()
        runs.append(params)
    for ours, theirs in zip(*runs, strict=True):
        assert_same_bits(name, ours.detach(), theirs.detach())


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_without_a_direction(backend):
    """A NaN does not decay, an element that stays does, zero stays zero."""
    params = parameters([torch.tensor([1.0, 2.0, 0.0, -4.0])])
    optimizer = Lion(params, 0.25, weight_decay=0.5, cautious_decay=True, backend=backend)
    set_grads(params, [torch.tensor([torch.nan, 0.0, 0.0, 0.0])])
    optimizer.step()
    assert params[0][0].isnan()
    assert params[0].tolist()[1:] == [1.75, 0.0, -3.5]


def test_an_option_that_changes_between_steps():
    start, grads = values([SHAPE], torch.float32), values([SHAPE], torch.float32, seed=1)
    first, second = parameters(start), parameters(start)
    changed, fresh = AdamW(first, **RATE), AdamW(second, **RATE, backend="reference")
    for cautious in (False, True, True, False):
        for params, optimizer in ((first, changed), (second, fresh)):
            optimizer.param_groups[0]["cautious_decay"] = cautious
            set_grads(params, grads)
            optimizer.step()
        assert_same_bits(str(cautious), first[0].detach(), second[0].detach())
    changed.param_groups[0]["cautious_decay"] = True
    assert changed.state_dict()["param_groups"][0]["cautious_decay"] is True


def test_no_bytes_more():
    params = parameters(values([SHAPE], torch.float32))
    moved = []
    for cautious in (False, True):
        optimizer = AdamW(params, cautious_decay=cautious)
        set_grads(params, values([SHAPE], torch.float32))
        optimizer.step()
        moved.append([(key.bytes_moved, key.cautious) for key in optimizer._engine.bucket_keys])
    assert moved == [[(28, False)], [(28, True)]]


REFUSED = [case for case in ONE_PER_CLASS if case.class_name not in DECOUPLED]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_rules_without_a_decay_of_their_own_refuse_it(case):
    with pytest.raises(ValueError, match="cautious_decay must be False for a rule without"):
        case.fused(parameters([torch.ones(3)]), **case.options, cautious_decay=True)


def test_a_group_that_cannot_decay_cautiously_is_named():
    params = parameters([torch.ones(3), torch.ones(2, 2)])
    with pytest.raises(ValueError, match="the decay of sgd is a part of the update"):
        Muon([{"params": params[1:]}, {"params": params[:1], "algorithm": "sgd"}], cautious_decay=1)
    assert SGD(params, cautious_decay=False).param_groups
