"""Muon's groups of other rules, checkpoints, and the messages about wrong options.

Faults tried by hand: options, L2 penalty or first states read by Muon instead of the rule of the
group, ``algorithm`` lost on loading, options of Muon left in a group of another rule.
"""

import copy
import math

import pytest
import torch
from helpers.models import parameters, set_grads, values
from helpers.versions import NEEDS_TORCH_MUON

import fused_optim
from fused_optim import Muon, from_torch
from fused_optim.testing.closeness import assert_same_bits


def run(optimizer, params, grads):
    for given in grads:
        set_grads(params, given)
        optimizer.step()


def test_one_norm_clips_both_rules():
    """Compare a model in one optimizer with torch's two optimizers and clip_grad_norm_."""
    start = values([(32, 48), (48,), (64, 32)], torch.float32)
    grads = [values([(32, 48), (48,), (64, 32)], torch.float32, seed=step) for step in range(10)]
    params = parameters(start)
    adamw = {"algorithm": "adamw", "lr": 3e-3, "weight_decay": 0.2}
    groups = [{"params": params[:1]}, {"params": params[1:], **adamw}]
    optimizer = Muon(groups, lr=0.02, max_grad_norm=1.0)
    run(optimizer, params, grads)
    theirs, scaled = parameters(start), []
    for given in grads:
        factor = min(1.0, 1.0 / (math.sqrt(sum(float(g.double().square().sum()) for g in given))))
        scaled.append([factor * g for g in given])
    run(
        torch.optim.AdamW(theirs[1:], lr=3e-3, weight_decay=0.2),
        theirs[1:],
        [g[1:] for g in scaled],
    )
    alone = parameters(start[:1])
    run(Muon(alone, lr=0.02), alone, [g[:1] for g in scaled])
    torch.testing.assert_close(params[0], alone[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(params[1:], theirs[1:], rtol=0, atol=2e-6)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads[-1]))
    assert math.isclose(optimizer.grad_norm, norm, rel_tol=1e-6)
    assert sorted(optimizer.state[params[0]]) == ["momentum_buffer"]
    assert sorted(optimizer.state[params[1]]) == ["exp_avg", "exp_avg_sq", "step"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"weight_decay": 0.3}),
        ("LAMB", {"norm_bounds": (0.5, 2.0)}),
        ("Adagrad", {"initial_accumulator_value": 0.5}),
        ("NAdam", {"decoupled_weight_decay": True}),
    ],
)
def test_a_group_of_another_rule_is_that_optimizer(name, options):
    start = values([(8, 12), (12,)], torch.float32)
    grads = [values([(8, 12), (12,)], torch.float32, seed=step) for step in range(3)]
    params, alone = parameters(start), parameters(start[1:])
    other = {"params": params[1:], "algorithm": name.lower(), "lr": 0.1, **options}
    run(Muon([{"params": params[:1]}, other], lr=0.02), params, grads)
    run(getattr(fused_optim, name)(alone, lr=0.1, **options), alone, [g[1:] for g in grads])
    assert_same_bits(name, params[1].detach(), alone[0].detach())


@NEEDS_TORCH_MUON
def test_checkpoints_both_ways_and_with_two_rules():
    start = values([(8, 12), (12,)], torch.float32)
    grads = [values([(8, 12), (12,)], torch.float32, seed=step) for step in range(3)]
    theirs = parameters(start[:1])
    torch_optimizer = torch.optim.Muon(theirs, lr=0.02)
    run(torch_optimizer, theirs, [g[:1] for g in grads])
    ours = parameters(theirs)
    optimizer = Muon(ours)
    optimizer.load_state_dict(torch_optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert_same_bits(
        "momentum",
        optimizer.state[ours[0]]["momentum_buffer"],
        torch_optimizer.state[theirs[0]]["momentum_buffer"],
    )
    back = torch.optim.Muon(theirs)
    back.load_state_dict(optimizer.state_dict())
    assert isinstance(from_torch(back), Muon)

    def groups(p):
        return [{"params": p[:1]}, {"params": p[1:], "algorithm": "adamw", "lr": 1e-3}]

    params = parameters(start)
    one = Muon(groups(params), lr=0.02)
    run(one, params, grads)
    others = parameters(params)
    two = Muon(groups(others))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    run(one, params, grads)
    run(two, others, grads)
    for a, b in zip(params, others, strict=True):
        assert_same_bits("resumed", a.detach(), b.detach())
    assert "momentum" not in two.param_groups[1]


def group(**options):
    return [{"params": [torch.ones(3, 3, requires_grad=True)], **options}]


WRONG = [
    (group(algorithm="adamw", momentum=0.9), "no option 'momentum': its options are .*betas"),
    (group(algorithm="adamx"), "algorithm must be one of 'muon', 'adadelta'"),
    (group(algorithm="schedulefreeadamw"), r"it needs train\(\) and eval\(\)"),
    (group(algorithm="adamw", betas=(0.9, 1.5)), r"betas\[1\] must be in \[0, 1\), got 1.5"),
    (group(ns_steps=100), r"ns_steps must be a whole number in \[0, 99\], got 100"),
    (group(adjust_lr_fn="x"), "Adjust learning rate function x is not supported"),
    (group(ns_coefficients=(1, 2)), "Coefficients must be a tuple of exactly 3 values"),
    (group(ns_coefficients=[(1, 2, 3)]), "a triple for each of ns_steps=5 steps, got 1"),
    (group(ns_dtype=torch.int8), "ns_dtype must be one of torch.bfloat16"),
    (group(split=(1, 1)), r"must have 2 rows for split=\(1, 1\), got 3"),
    (group(heads=2), "a number of rows that heads=2 divides, got 3"),
    ([torch.ones(3, requires_grad=True)], "Muon only supports 2D parameters.*algorithm='adamw'"),
    ([torch.ones(3, 2, 2, requires_grad=True)], "pass batch_dims=0 to flatten"),
    ([torch.ones(3, 2, dtype=torch.complex64, requires_grad=True)], "support complex parameters"),
]


@pytest.mark.parametrize(("params", "message"), WRONG, ids=[message for _, message in WRONG])
def test_mistakes_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        Muon(params)


def test_a_slice_of_a_matrix_is_refused():
    params = parameters(values([(8, 12), (12,)], torch.float32))
    optimizer = Muon([{"params": params[:1]}, {"params": params[1:], "algorithm": "adamw"}])
    with pytest.raises(ValueError, match="param must be whole in a group of Muon"):
        optimizer.shard(params[0], index=0, offset=0, numel=192)
    optimizer.shard(params[1], index=1, offset=0, numel=24)
