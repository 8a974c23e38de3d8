"""Conversions of a live optimizer from torch and to torch, after which training goes on.

Faults guarded against: a state that is left behind, fp32 states cast to the parameter's dtype, an
option that torch lacks dropped in silence.
"""

import copy

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values
from helpers.torch_pair import Pair, each_case, each_class

import fused_optim
from fused_optim.options import GROUP_DEFAULTS


def in_groups(params):
    return [
        {"params": [("a", params[0]), ("b", params[1])]},
        {"params": [("c", params[2]), ("d", params[3])], "lr": 0.2, "initial_lr": 0.5},
    ]


@pytest.mark.feature("from_torch and to_torch")
@each_case
def test_from_torch(case):
    """Guard against entries, defaults, names or state that a conversion loses."""
    pair = Pair(case, group=in_groups)
    pair.step(3)
    params, live = copy.deepcopy((pair.params[1], pair.optimizers[1]))
    ours = fused_optim.from_torch(live, backend="reference", max_grad_norm=1e9)
    assert type(ours) is case.fused
    assert ours.max_grad_norm == 1e9
    assert [group["initial_lr"] for group in ours.param_groups[1:]] == [0.5]
    assert ours.param_groups[1]["param_names"] == ["c", "d"]
    assert ours.param_groups[0]["params"][0] is params[0]
    assert ours.defaults.items() >= live.defaults.items()
    pair.params, pair.optimizers = (params, pair.params[1]), (ours, pair.optimizers[1])
    pair.step(5)


@pytest.mark.feature("from_torch and to_torch")
@each_case
def test_to_torch(case):
    pair = Pair(case, group=in_groups)
    pair.step(3)
    params, live = copy.deepcopy((pair.params[0], pair.optimizers[0]))
    theirs = live.to_torch()
    assert type(theirs) is case.torch_class
    assert theirs.param_groups[0].keys() == pair.optimizers[1].param_groups[0].keys()
    assert theirs.defaults == pair.optimizers[1].defaults
    mine = state_of(theirs, params[0])
    assert mine.keys() == state_of(pair.optimizers[1], pair.params[1][0]).keys()
    pair.params, pair.optimizers = (pair.params[0], params), (pair.optimizers[0], theirs)
    pair.step(5)


@pytest.mark.feature("from_torch and to_torch")
@each_class
def test_states_are_shared_with_their_dtypes(case):
    """Guard against casts of fp32 moments of bf16 parameters, which loading would cast."""
    (param,) = parameters(values([(3,)], torch.bfloat16))
    live = case.torch_class([param])
    set_grads([param], values([(3,)], torch.bfloat16, 1))
    live.step()
    for name, value in state_of(live, param).items():
        live.state[param][name] = value.float()
    ours = fused_optim.from_torch(live)
    for name, value in state_of(live, param).items():
        assert ours.state[param][name] is value
    back = ours.to_torch()
    assert all(back.state[param][name] is value for name, value in state_of(live, param).items())


OWN = {
    "max_grad_norm": 1.0,
    "max_grad_value": 2.0,
    "l1": 0.5,
    "nonfinite": "skip",
    "ema_decay": 0.5,
    "cautious_decay": True,
    "weights": "split",
    "states": "fp32",
    "seed": 1,
    "count_stalled": True,
}


@pytest.mark.feature("from_torch and to_torch")
@pytest.mark.parametrize("name", OWN)
@each_class
def test_what_torch_does_not_have(case, name):
    """Guard against an option that is dropped in silence, in the first group or a later one."""
    assert OWN.keys() == GROUP_DEFAULTS.keys() - {"backend"}
    params = parameters(values([(3,), (3,)], torch.float32))
    optimizer = case.fused([{"params": [param]} for param in params])
    peer = f"torch.optim.{case.torch_class.__name__}"
    for group in optimizer.param_groups:
        group[name] = OWN[name]
        with pytest.raises(
            ValueError, match=rf"{name} must be .* for {peer}, which has no such option"
        ):
            optimizer.to_torch()
        del group[name]  # an option that is not listed has its default
    optimizer.to_torch()


@pytest.mark.feature("from_torch and to_torch")
@each_class
def test_an_average_of_before_stays_here(case):
    """Guard against a state that torch does not know, in its checkpoints from then on."""
    (param,) = parameters(values([(3,)], torch.float32))
    plain, averaging = (case.fused([param], ema_decay=decay) for decay in (None, 0.5))
    for optimizer in (plain, averaging):
        set_grads([param], values([(3,)], torch.float32, 1))
        optimizer.step()
    averaging.param_groups[0]["ema_decay"] = None
    states = [optimizer.to_torch().state.get(param, {}) for optimizer in (plain, averaging)]
    assert states[0].keys() == states[1].keys()
    assert "ema" in averaging.state[param]


@pytest.mark.feature("from_torch and to_torch")
def test_a_float64_count_suits_torchs_fused_step():
    """Guard against a count that torch's kernels refuse."""
    (param,) = parameters(values([(3,)], torch.float32))
    optimizer = fused_optim.AdamW([param], fused=True)
    set_grads([param], values([(3,)], torch.float32, 1))
    optimizer.step()
    optimizer.state[param]["step"] = optimizer.state[param]["step"].double()
    theirs = optimizer.to_torch()
    set_grads([param], values([(3,)], torch.float32, 2))
    theirs.step()
    assert (theirs.state[param]["step"].dtype, theirs.state[param]["step"]) == (torch.float32, 2)


@pytest.mark.feature("from_torch and to_torch")
@each_class
def test_subclasses_are_refused(case):
    params = parameters(values([(3,)], torch.float32))
    for parent, turn in (
        (case.torch_class, fused_optim.from_torch),
        (case.fused, lambda optimizer: optimizer.to_torch()),
    ):
        mine = type("Mine", (parent,), {})(params)
        with pytest.raises(TypeError, match="a subclass may override the step"):
            turn(mine)
        same_name = type(parent.__name__, (parent,), {})(params)
        with pytest.raises(TypeError, match="a subclass may override the step"):
            turn(same_name)


@pytest.mark.feature("from_torch and to_torch")
def test_without_a_namesake():
    params = parameters(values([(3,)], torch.float32))
    with pytest.raises(TypeError, match="fused_optim has no LBFGS"):
        fused_optim.from_torch(torch.optim.LBFGS(params))
    with pytest.raises(TypeError, match=r"torch\.optim has no Lion"):
        fused_optim.Lion(params).to_torch()
    with pytest.raises(TypeError, match=r"must be an optimizer of torch\.optim, got .*AdamW"):
        fused_optim.from_torch(fused_optim.AdamW(params))


@pytest.mark.feature("from_torch and to_torch")
def test_a_dampened_momentum_whose_steps_were_skipped():
    """Guard against a lost first step: ours has a count, torch a missing buffer."""
    pair_of = [parameters(values([(3,)], torch.float64)) for _ in range(2)]
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    ours = fused_optim.SGD(pair_of[0], **options, nonfinite="skip")
    set_grads(pair_of[0], [torch.full((3,), torch.nan)])
    ours.step()
    ours.param_groups[0]["nonfinite"] = "propagate"
    optimizers = ours.to_torch(), torch.optim.SGD(pair_of[1], **options)
    for seed in range(3):
        for optimizer, params in zip(optimizers, pair_of, strict=True):
            set_grads(params, values([(3,)], torch.float64, seed))
            optimizer.step()
    torch.testing.assert_close(*pair_of)
