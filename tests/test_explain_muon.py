"""``explain()`` of Muon: how each parameter is cut, compared with the matrices of a step.

Fault tried by hand: rows and columns exchanged.
"""

import math
from collections import Counter

import torch
from torch import nn

from fused_optim import AdamW, Muon, param_groups_for_muon


def make_optimizer():
    """Return Muon on a projection in parts, a convolution, experts and an embedding."""
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(10, 4),
            "qkv": nn.Linear(4, 24),
            "conv": nn.Conv2d(2, 6, 3),
            "head": nn.Linear(4, 10),
        }
    )
    model.experts = nn.Parameter(torch.zeros(3, 5, 4))
    named = {
        "qkv.weight": {"split": (8, 16), "heads": 2},
        "experts": {"batch_dims": 1, "adjust_lr_fn": "match_rms_adamw"},
        "head.*": "lion",
    }
    return Muon(param_groups_for_muon(model, named=named), backend="reference")


def test_matrices_are_those_of_a_step():
    optimizer = make_optimizer()
    rows = {row.name: row for row in optimizer.explain().rows}
    for param in optimizer._params():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert {row.name: row for row in optimizer.explain().rows} == rows
    runners = [b.runner for b in optimizer._engine.plan.buckets.values()]
    taken = Counter()
    for runner in runners:
        groups = runner.layout.batches if hasattr(runner, "layout") else []
        for batch in (batch for group in groups for batch in group):
            taken[batch.shape] += len(batch.places)
    explained = Counter()
    for row in rows.values():
        for number, height, width, factor in row.matrices:
            of_adamw = 0.2 * math.sqrt(max(height, width))
            original = math.sqrt(max(1, height / width))
            assert math.isclose(factor, of_adamw if row.name == "experts" else original)
            explained[height, width] += number
    assert explained == taken
    assert taken == {(4, 4): 2, (8, 4): 2, (6, 18): 1, (5, 4): 3}


def test_the_table_shows_rule_and_matrices():
    lines = str(make_optimizer().explain()).splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert "2 of 4 x 4: lr x 1; 2 of 8 x 4: lr x 1.414" in rows["qkv.weight"]
    for name, rule in (
        ("qkv.weight", "muon_nesterov"),
        ("tokens.weight", "adam"),
        ("head.weight", "lion"),
    ):
        assert f" {rule} " in rows[name]
    assert " lr x " not in rows["tokens.weight"]
    assert "matrices" in lines[0]
    assert "matrices" not in str(AdamW([torch.zeros(3, requires_grad=True)]).explain())
