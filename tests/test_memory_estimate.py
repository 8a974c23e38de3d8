"""The estimate of ``memory``, compared with the memory of real optimizers."""

import re
from pathlib import Path

import pytest
import torch
from helpers.models import parameters, set_grads, values
from torch import nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import fused_optim
from ci.codegen.rules import FORMAT_PAIRS
from fused_optim import AdamW, memory
from fused_optim.formats.registry import STATES, WEIGHTS

BF16 = torch.bfloat16
# bytes of states, and bytes that a step without norm moves, for each parameter
PRESETS = {
    ("plain", "param", torch.float32): (8, 28),
    ("plain", "param", BF16): (4, 14),
    ("master", "fp32", BF16): (12, 30),
    ("split", "fp32", BF16): (10, 26),
    ("split", "bf16", BF16): (6, 18),
    ("split", "int8", BF16): (4 + 2 / 64, 14 + 4 / 64),
    ("split24", "int8", BF16): (3 + 2 / 64, 12 + 4 / 64),
    ("plain", "int8", torch.float32): (2 + 2 / 64, 16 + 4 / 64),
}


def taken(optimizer):
    """Return the bytes of all states but the counts."""
    states = optimizer.state.values()
    return sum(v.nbytes for state in states for k, v in state.items() if k != "step")


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_the_presets(preset, capsys):
    """Guard against other bytes than documented, in a real optimizer and in the estimate."""
    weights, states, dtype = preset
    held, moved = PRESETS[preset]
    param = Parameter(torch.zeros(6400, dtype=dtype))
    optimizer = AdamW([param], weights=weights, states=states, backend="reference")
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert taken(optimizer) == held * 6400
    result = memory([param], weights=weights, states=states)
    assert result.states == held * 6400 + 4
    assert result.moved == moved * 6400
    assert result.parameters == result.gradients == dtype.itemsize * 6400
    assert result.total == result.parameters + result.gradients + result.states
    assert capsys.readouterr().out == f"{result}\n"
    with_norm = memory([param], weights=weights, states=states, max_grad_norm=1.0)
    assert with_norm.moved == (moved + dtype.itemsize) * 6400


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_format(weights, states):
    """Guard against partial blocks, small tensors and averages left out of the estimate."""
    shapes = [(5000,), (3, 1400), (7,), (0,)]
    for fused, options in ((AdamW, {"amsgrad": True}), (fused_optim.Lion, {})):
        options |= {"weights": weights, "states": states, "ema_decay": 0.9}
        options["backend"] = "reference"  # the others take the same states
        params = parameters(values(shapes, BF16))
        optimizer = fused(params, **options)
        set_grads(params, values(shapes, BF16, 1))
        optimizer.step()
        steps = sum(state["step"].nbytes for state in optimizer.state.values())
        assert memory(params, fused, **options).states == taken(optimizer) + steps


def test_nothing_is_computed_element_by_element():
    """Guard against an estimate that takes the longer, the larger a model is."""

    class FewOperations(TorchDispatchMode):
        left = 1000

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.left -= 1
            assert self.left > 0
            return operation(*args, **(kwargs or {}))

    param = Parameter(torch.empty(1 << 40, dtype=BF16, device="meta"))
    with FewOperations():
        result = memory([param], weights="split", states="int8", ema_decay=0.9)
    assert result.states == (4 + 2 / 64 + 4) * 2**40 + 4


def test_a_model_too_large_for_any_machine(capsys):
    """Guard against allocations: a module on the meta device, some of it frozen."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1 << 17, 1 << 17, bias=False), nn.Linear(1 << 17, 8))
    model[1].weight.requires_grad_(False)
    result = memory(model, states="int8")
    assert result.numel == (1 << 34) + (1 << 20) + 8
    assert result.gradients == 4 * ((1 << 34) + 8)
    assert result.parameters == 4 * result.numel
    assert "64.004" in capsys.readouterr().out.splitlines()[1]
    assert memory(model.named_parameters(), states="int8") == result
    group = {"params": model[0].parameters(), "states": "int8"}
    pair = memory([group, {"params": model[1].weight}, {"params": [model[1].bias]}])
    assert pair[:3] == result[:3]  # numel, parameters, gradients: of the iterator too
    assert model[0].weight.grad is None


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_parameters_add_up(max_grad_norm):
    """Guard against a sum that has one parameter, one group or one dtype."""
    params = parameters([torch.zeros(n, dtype=d) for n, d in ((70, torch.float32), (9, BF16))])
    options = {"states": "fp32", "max_grad_norm": max_grad_norm}
    alone = [memory([param], **options) for param in params]
    expected = [sum(parts) for parts in zip(*alone, strict=True)]
    for given in (params, [{"params": params[:1]}, {"params": params[1:]}]):
        assert list(memory(given, **options)) == expected


def test_the_text_is_in_gib_and_bytes_a_parameter():
    text = str(fused_optim.Memory(1 << 28, 1 << 30, 1 << 29, 1 << 31, 1 << 33))
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["parameters", "1.000", "4.00"],
        ["gradients", "0.500", "2.00"],
        ["states", "2.000", "8.00"],
        ["total", "3.500", "14.00"],
        ["moved", "8.000", "32.00"],
    ]


def test_what_an_optimizer_refuses_is_refused():
    with pytest.raises(ValueError, match="lr must be"):
        memory(nn.Linear(2, 2), lr=-1)
    with pytest.raises(ValueError, match="empty"):
        memory([])
    with pytest.raises(TypeError):
        memory(["weight"])
    with pytest.raises(ValueError, match="states must be one of"):
        memory(nn.Linear(2, 2), states="int2")


def test_the_pairs_of_formats_are_all_formats():
    """Guard against formats that tests over FORMAT_PAIRS leave out."""
    assert {f["weights"] for f in FORMAT_PAIRS} == set(WEIGHTS)
    assert {f["states"] for f in FORMAT_PAIRS} == set(STATES)
    assert FORMAT_PAIRS[0] == {"weights": "plain", "states": "param"}


def test_the_page_has_these_bytes():
    """Guard against other bytes in the table of docs/formats.md."""
    lines = (Path(__file__).parent.parent / "docs" / "formats.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if re.match(r'\| `"\w+"`, `"\w+"`', line)]
    assert len(rows) == len(PRESETS)
    for row in rows:
        weights, states = re.findall(r'`"(\w+)"`', row[0])
        dtype = {"fp32": torch.float32, "bf16": BF16}[row[1].strip()]
        param = Parameter(torch.empty(1 << 24, dtype=dtype, device="meta"))
        result = memory([param], weights=weights, states=states, max_grad_norm=1.0)
        resident = (result.parameters + result.states) / result.numel
        assert [float(row[2]), float(row[3])] == [
            round(resident, 2),
            round(result.moved / 2**24, 2),
        ]
