"""The code of docs/muon.md runs, and does what the page says; its times are those measured.

Faults tried by hand: the numbers of the second state dict not shifted; a time changed.
"""

import re
from pathlib import Path

import torch
from helpers.page import list_blocks
from helpers.versions import NEEDS_TORCH_MUON

import fused_optim

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "muon.md"
RESULT = ROOT / "benchmarks" / "results" / "muon_whole.md"
MODELS = ("gpt2-124m", "vit-b", "gpt-1m")  # columns of the table of times


def run_blocks():
    """Yield the names that the blocks have defined, after each of them."""
    names = {"__name__": "page"}
    for line, code in list_blocks(PAGE.read_text()):
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), names)
        yield names


@NEEDS_TORCH_MUON
def test_muon_page_runs(capsys):
    blocks = run_blocks()
    next(blocks)
    printed = capsys.readouterr().out
    assert f"```\n{printed}```" in PAGE.read_text(), printed
    names = next(blocks)  # from torch.optim.Muon, and back
    for param in names["hidden"]:
        buffers = [o.state[param]["momentum_buffer"] for o in (names["ours"], names["theirs"])]
        assert torch.equal(*buffers)
    names = next(blocks)  # from AdamW
    steps = {len(state): state.get("step") for state in names["optimizer"].state.values()}
    assert steps == {1: None, 3: torch.tensor(2.0)}
    names = next(blocks)  # two state dicts
    check_merged(**{key: names[key] for key in ("optimizer", "muon", "adamw", "model")})
    assert isinstance(next(blocks)["optimizer"], fused_optim.NorMuon)
    assert next(blocks, None) is None


def check_merged(optimizer, muon, adamw, model):
    """The merged optimizer goes on as the two do, and has their options."""
    assert isinstance(optimizer, fused_optim.Muon)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 3e-4]
    before = [param.detach().clone() for param in model.parameters()]
    optimizer.step()
    ours = [param.detach().clone() for param in model.parameters()]
    with torch.no_grad():
        for param, value in zip(model.parameters(), before, strict=True):
            param.copy_(value)
    muon.step()
    adamw.step()
    for mine, start, other in zip(ours, before, model.parameters(), strict=True):
        # torch's products are in bf16
        scale = (other - start).abs().max()
        torch.testing.assert_close(mine, other.detach(), atol=0.05 * scale.item(), rtol=0)


def test_the_times_are_those_of_the_result():
    sections = re.split(r"^## Muon with AdamW, clipped: ", RESULT.read_text(), flags=re.MULTILINE)
    measured = {}
    for section in sections[1:]:
        model = section.split(",")[0]
        for name, median in re.findall(r"^\| (\w[^|]*) \| ([\d.]+ m?s) ", section, re.MULTILINE):
            measured.setdefault(name, {})[model] = median
    time = r" ([\d.]+ m?s) \|"
    rows = re.findall(rf"^\| (\w[^|]*) \|{3 * time}$", PAGE.read_text(), re.MULTILINE)
    assert {name: dict(zip(MODELS, times, strict=True)) for name, *times in rows} == measured
    assert len(rows) >= 6
