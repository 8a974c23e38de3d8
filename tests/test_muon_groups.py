"""``param_groups_for_muon``: rules by module type, overrides by name, and what it refuses.

Faults tried by hand: the choice by the number of dims, only the first owner of a shared weight
looked at, every linear layer of the embedding's width taken for the output layer, the last linear
layer of repeated blocks taken for it, the first pattern instead of the last, options of a type
dropped where a name adds one, an embedding moved by a wildcard, matrices of the table not split.
"""

import re

import pytest
import torch
from torch import nn

import fused_optim
from examples.gpt.model import GPT, Shape
from fused_optim import Muon, param_groups_for_muon


class SmallGPT(nn.Module):
    """Two blocks as in GPT-2, with as many positions as features."""

    def __init__(self, tied=True, width=16, vocabulary=40):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(width, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm((2, width // 2)),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                }
            )
            for _ in range(2)
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.tokens.weight


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv1d(8, 12, 3, groups=2)
        self.head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4, bias=False)
        self.up = nn.Parameter(torch.zeros(4, 6, 8))
        self.head = nn.Linear(8, 3)


def rules_of(model, **arguments):
    """Return rule and options by name, of groups that Muon takes and names."""
    optimizer = Muon(param_groups_for_muon(model, **arguments))
    found = {}
    for group in optimizer.param_groups:
        assert len(group["params"]) == len(group["param_names"])
        by_name = dict(model.named_parameters())
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert by_name[name] is param
            cut = {key: group.get(key) for key in ("batch_dims", "split", "heads")}
            found[name] = (group.get("algorithm", "muon"), cut)
    assert found.keys() == by_name.keys(), "every parameter is in a group"
    return found


def muon_names(model, **arguments):
    rules = rules_of(model, **arguments)
    return {name for name, (rule, _) in rules.items() if rule == "muon"}


def test_gpt_with_tied_and_untied_output():
    hidden = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "out")}
    assert muon_names(SmallGPT(tied=True)) == hidden
    assert muon_names(SmallGPT(tied=False)) == hidden
    # multiplied by the embedding: no layer of the repeated blocks is the output
    example = GPT(Shape(layers=2, width=16))
    names = ("qkv", "out", "up", "down")
    assert muon_names(example) == {f"blocks.{i}.{n}.weight" for i in (0, 1) for n in names}


def test_an_output_layer_before_the_embedding_is_found():
    model = nn.ModuleDict({"head": nn.Linear(4, 9), "tokens": nn.Embedding(9, 4)})
    model["last"] = nn.Linear(4, 4)
    assert muon_names(model) == {"last.weight"}


def test_convolutions():
    rules = rules_of(ConvNet())
    flat = {"batch_dims": 0, "split": None, "heads": 1}
    assert rules["stem.weight"] == ("muon", flat)
    assert rules["grouped.weight"] == ("muon", {**flat, "heads": 2})
    assert rules["head.0.weight"] == ("muon", {"batch_dims": None, "split": None, "heads": 1})
    assert {name for name, (rule, _) in rules.items() if rule == "adamw"} == {
        "stem.bias",
        "norm.weight",
        "norm.bias",
        "depthwise.weight",
        "depthwise.bias",
        "grouped.bias",
        "head.0.bias",
        "head.2.weight",
        "head.2.bias",
    }


def test_attention_of_torch_is_split_and_named_heads_are_added():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12), nn.Linear(8, 3))
    name = "0.self_attn.in_proj_weight"
    thirds = {"batch_dims": None, "split": (8, 8, 8), "heads": 1}
    assert rules_of(model)[name] == ("muon", thirds)
    named = {"*.in_proj_weight": {"heads": 2}}
    assert rules_of(model, named=named)[name] == ("muon", {**thirds, "heads": 2})


def test_experts_must_be_named():
    with pytest.raises(ValueError, match=r"named must have .* 1 parameters.*'up' \(4, 6, 8\) of E"):
        param_groups_for_muon(Experts())
    rules = rules_of(Experts(), named={"up": {"batch_dims": 1}})
    assert rules["up"] == ("muon", {"batch_dims": 1, "split": None, "heads": 1})
    assert rules["router.weight"][0] == "muon"
    rules = rules_of(Experts(), named={"up": "lion"}, lion={"lr": 1e-5})
    assert rules["up"][0] == "lion"
    with pytest.raises(ValueError, match="named must have"):
        param_groups_for_muon(Experts(), named={"up": {"weight_decay": 0.0}})


class Conv1D(nn.Module):
    """A linear layer with a weight of [inputs, outputs], as in transformers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 24))
        self.bias = nn.Parameter(torch.zeros(24))


def test_an_unknown_module_is_listed_and_no_guess_is_made():
    with pytest.raises(ValueError, match=r"'0.weight' \(8, 24\) of Conv1D.*Pass named=") as error:
        param_groups_for_muon(nn.Sequential(Conv1D(), nn.LSTM(4, 4)))
    assert "'1.weight_ih_l0' (16, 4) of LSTM" in str(error.value)
    assert "bias" not in str(error.value)
    symmetric = {"algorithm": "muon", "adjust_lr_fn": "match_rms_adamw"}
    assert muon_names(Conv1D(), named={"weight": symmetric}) == {"weight"}


def test_options_and_the_last_pattern_count():
    groups = param_groups_for_muon(
        SmallGPT(tied=False),
        muon={"lr": 0.02, "states": "bf16"},
        adamw={"lr": 1e-3, "betas": (0.8, 0.9)},
        named={
            "*.bias": {"weight_decay": 0.0},
            "blocks.0.*": "adamw",
            "blocks.0.qkv.weight": {"split": (16, 16, 16), "lr": 0.01},
            "lm_head.weight": {"algorithm": "sgd", "momentum": 0.5},
        },
        sgd={"lr": 0.3},
    )
    by_name = {name: group for group in groups for name, _ in group["params"]}
    # with the options of Muon and of the group, but not those of AdamW
    own = {key: by_name["blocks.0.qkv.weight"].get(key) for key in ("lr", "states", "algorithm")}
    assert own == {"lr": 0.01, "states": "bf16", "algorithm": None}
    assert by_name["blocks.0.out.weight"]["algorithm"] == "adamw"
    assert by_name["blocks.1.out.weight"]["lr"] == 0.02
    assert "weight_decay" not in by_name["blocks.0.qkv.bias"], "the later pattern overrides"
    assert by_name["blocks.1.qkv.bias"]["weight_decay"] == 0.0
    assert by_name["blocks.1.qkv.bias"]["betas"] == (0.8, 0.9)
    head = {key: by_name["lm_head.weight"][key] for key in ("algorithm", "lr", "momentum")}
    assert head == {"algorithm": "sgd", "lr": 0.3, "momentum": 0.5}
    assert len(groups) == 5, "equal options share a group"
    optimizer = Muon(groups)
    for param in optimizer._params():
        param.grad = torch.ones_like(param)
    optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"named": {"block.*": "adamw"}}, r"named\['block.\*'\] must fit .* got none of tokens"),
        ({"named": {"*.weight": "muon"}}, "must not move the embedding 'tokens.weight' to Muon"),
        ({"named": {"lm_head.w*": "muon"}}, "must not move the embedding 'tokens.weight'"),
        ({"named": {"*norm.bias": {"algorithm": "nothing"}}}, "must be one of .* got 'nothing'"),
        ({"named": {"tokens*": {"mumentum": 1}}}, "'adamw' has no option 'mumentum': .*betas"),
        ({"named": {"blocks.0.qkv.weight": {"heads": 5}}}, "'blocks.0.qkv.weight' .* heads=5"),
        ({"named": {"*qkv.weight": {"split": (16, 16)}}}, "32 rows for split=.16, 16., got 48"),
        ({"named": {"*qkv.bias": "muon"}}, "'blocks.0.qkv.bias' .* two dims"),
        ({"muon": {"betas": (0.9, 0.99)}}, "'muon' has no option 'betas'.*ns_steps"),
        ({"adamw": {"momentum": 0.9}}, "'adamw' has no option 'momentum'"),
        ({"schedulefreeadamw": {}}, "must be one of .* got 'schedulefreeadamw'"),
        ({"names": {}}, "must be one of .* got 'names'"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        param_groups_for_muon(SmallGPT(), **arguments)


def test_an_embedding_may_be_named():
    assert "tokens.weight" in muon_names(SmallGPT(), named={"lm_head.weight": "muon"})
    with pytest.raises(TypeError, match="must be a rule or a dict"):
        param_groups_for_muon(SmallGPT(), named={"*": 1})


def test_lazy_and_frozen_parameters():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"'0.weight' must have a shape: run a forward pass"):
        param_groups_for_muon(model)
    model(torch.zeros(1, 3))
    model[0].weight.requires_grad_(False)
    assert muon_names(model) == {"0.weight"}
    model[1].weight._fsdp_flattened = True  # as FSDP1 marks its parameters
    with pytest.raises(ValueError, match=r"'1.weight' must not be flattened .*FSDP2"):
        param_groups_for_muon(model)


def test_the_table(capsys):
    model = SmallGPT()
    model.blocks[1]["qkv"].weight.requires_grad_(False)
    named = {"blocks.*.qkv.weight": {"split": (16, 32), "heads": 2}}
    param_groups_for_muon(model, named=named, print_table=True)
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", head) == ["parameter", "shape", "rule", "matrices", "why"]
    rows = {cells[0]: cells[1:] for cells in (re.split("  +", line) for line in lines)}
    assert rows.keys() == dict(model.named_parameters()).keys()
    assert rows["tokens.weight"] == ["40 x 16", "adamw", "-", "embedding, tied with lm_head.weight"]
    assert rows["blocks.0.qkv.weight"] == [
        "48 x 16",
        "muon",
        "2 of 8 x 16: lr x 1; 2 of 16 x 16: lr x 1",
        "named 'blocks.*.qkv.weight'",
    ]
    assert rows["blocks.1.qkv.weight"][-1] == "named 'blocks.*.qkv.weight', frozen"
    assert rows["blocks.0.norm.weight"][1:] == ["adamw", "-", "LayerNorm"]
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 4))
    options = {"adjust_lr_fn": "match_rms_adamw"}
    param_groups_for_muon(model, print_table=True)
    param_groups_for_muon(model, muon=options, print_table=True)
    printed = capsys.readouterr().out
    assert "16 x 4: lr x 2 " in printed
    assert "16 x 4: lr x 0.8 " in printed


def test_it_is_public():
    assert "param_groups_for_muon" in fused_optim.__all__
