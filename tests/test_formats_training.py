"""The training in every storage format runs, and the pages of the formats have its results.

Faults tried by hand: a loss changed in the JSON file, in its page or in the page of a format; a
page of a format without its rows, or with an old date; a model in bf16 that is multiplied in bf16;
another model at the start of each format; the deviation of the losses for that of the differences.
"""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
from benchmarks import formats_training
from benchmarks.gpt_formats import Format
from examples.gpt.model import GPT, Shape
from fused_optim.formats.registry import STATES, WEIGHTS

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "formats_training.json"
FACTS = json.loads(RESULT.read_text())


def test_the_page_has_the_results():
    assert FACTS["rows"] == formats_training.summarize(FACTS["curves"])
    assert RESULT.with_suffix(".md").read_text() == formats_training.page(FACTS)
    assert len(FACTS["curves"]) == FACTS["seeds"]
    assert all(
        max(map(int, seed[name])) == FACTS["steps"] for seed in FACTS["curves"] for name in seed
    )


def test_every_format_is_trained():
    found = [name.split(", ") for name in FACTS["rows"]]
    assert {weights for _, weights, _ in found} == set(WEIGHTS)
    assert {states for _, _, states in found} == set(STATES) - {"param"}
    assert tuple(FACTS["rows"]) == formats_training.NAMES


@pytest.mark.parametrize("name", FACTS["rows"])
def test_the_page_of_a_format_has_its_loss(name):
    dtype, weights, states = name.split(", ")
    pages = {"bf16": "states-bf16", "int8": "states-8bit", "fp8": "states-8bit"}
    own = {weights} if dtype == "bf16" else set()
    for page in own | ({pages[states]} if states in pages else set()):
        text = (ROOT / "docs" / "formats" / f"{page}.md").read_text()
        measured = text.partition("\n## Measured loss\n")[2].partition("\n## ")[0]
        for row in (name, formats_training.BASE):
            assert formats_training.line(row, FACTS["rows"][row]) in measured.splitlines(), page
        run = f"{FACTS['steps']} steps", f"{FACTS['seeds']} seeds", FACTS["date"], FACTS["command"]
        versions = FACTS["torch"].partition("+")[0], FACTS["python"]
        assert [fact for fact in (*run, *versions) if fact not in measured] == []


def test_deviations_are_those_of_losses_and_of_differences():
    name = "bf16, split, fp32"
    curves = [
        {formats_training.BASE: {1: 9.0, 2: base}, name: {1: 9.0, 2: end}}
        for base, end in ((1.0, 1.5), (3.0, 4.5))
    ]
    row = formats_training.summarize(curves)[name]
    assert (row["ends"], row["mean"], row["difference"]) == ([1.5, 4.5], 3.0, 1.0)
    assert row["deviation"] == pytest.approx(3 / 2**0.5)
    assert row["difference_deviation"] == pytest.approx(1 / 2**0.5)


def test_models_in_bf16_are_multiplied_in_float32():
    torch.manual_seed(0)
    wide = GPT(Shape(context=8, layers=1, heads=2, width=16)).bfloat16().float()
    narrow = Format(torch.bfloat16, {}).copy_of(wide)
    tokens = torch.arange(8).reshape(2, 4)
    assert torch.equal(narrow(tokens), wide(tokens))
    assert {param.dtype for param in narrow.parameters()} == {torch.bfloat16}


def test_formats_start_alike(tmp_path):
    """After one step of the warm-up the losses differ by little, and by format."""
    names = (formats_training.BASE, "fp32, plain, int8", "bf16, split, int8")
    curves = [formats_training.trained(seed, 1, names) for seed in (0, 1)]
    assert all(tuple(seed) == names for seed in curves)
    base, int8, split = (curves[0][name][1] for name in names)
    assert abs(base - int8) < 0.01
    assert 0 < abs(base - split) < 0.1
    assert curves[0][formats_training.BASE] != curves[1][formats_training.BASE]
    facts = {"curves": curves, "rows": formats_training.summarize(curves), "seeds": 2}
    formats_training.plotted(facts, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
