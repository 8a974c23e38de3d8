"""Train the example's GPT with AdamW in every storage format, from the same weights and batches.

``python -m benchmarks.formats_training`` takes 300 steps from each of three seeds, and writes
``formats_training.json``, ``.md`` and ``.png`` to benchmarks/results. With ``--draw`` it makes the
page and the plot of the committed results again.
"""

import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import fused_optim
from benchmarks.gpt_formats import Format, describe_training, make_parser
from examples.gpt.corpus import Corpus, standard_library
from examples.gpt.model import GPT
from examples.gpt.training import MAX_GRAD_NORM, Run, Task, groups, step_alone, train

SETTINGS = {"lr": 2e-3, "betas": (0.9, 0.99)}  # those of the example
DECAY = 0.1
BASE = "fp32, plain, fp32"
ALLOWED = 0.01  # of the loss of the base
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = (
    *(f"fp32, plain, {states}" for states in ("fp32", "bf16", "int8", "fp8")),
    *(
        f"bf16, {weights}, fp32"
        for weights in ("plain", "master", "split", "split24", "kahan", "stochastic")
    ),
    *(f"bf16, {weights}, int8" for weights in ("split", "split24")),
)
MARKED = {BASE: "#000000", "bf16, plain, fp32": "#d94801"}  # colours in the plot
Curve = dict[int, float]  # validation loss by step


def format_of(name: str) -> Format:
    """Return the format of a name: dtype of the parameters, ``weights=``, ``states=``."""
    dtype, weights, states = name.split(", ")
    return Format(DTYPES[dtype], {"weights": weights, "states": states})


def trained(seed: int, steps: int, names: tuple[str, ...] = NAMES) -> dict[str, Curve]:
    """Train a model in each format, on the same batches, and return the curves.

    The weights at the start are those of bf16, so that no format rounds them.
    """
    task = Task(Corpus.split(standard_library(), 64), steps, seed, torch.device("cpu"))
    torch.manual_seed(seed)
    weights = GPT(task.shape).bfloat16().float()
    runs: dict[str, Run] = {}
    for name in names:
        form = format_of(name)
        model = form.copy_of(weights)
        optimizer = fused_optim.AdamW(
            groups(model, DECAY), **SETTINGS, **form.options, max_grad_norm=MAX_GRAD_NORM
        )
        runs[name] = Run(model, optimizer, step_alone, task)
    for done in train(task, runs.values(), 0, steps):
        if done % 50 == 0:
            print(f"seed {seed}: {done} of {steps} steps", file=sys.stderr, flush=True)
    return {name: run.validation for name, run in runs.items()}


def summarize(curves: list[dict[str, Curve]]) -> dict[str, dict[str, Any]]:
    """Return the losses at the end of each format, and their differences to the base."""

    def ends_of(name: str) -> list[float]:
        return [list(seed[name].values())[-1] for seed in curves]

    rows = {}
    for name in curves[0]:
        ends = ends_of(name)
        differences = [end - base for end, base in zip(ends, ends_of(BASE), strict=True)]
        rows[name] = {
            "ends": ends,
            "mean": statistics.mean(ends),
            "deviation": statistics.stdev(ends),
            "difference": statistics.mean(differences),
            "difference_deviation": statistics.stdev(differences),
        }
    return rows


def line(name: str, row: dict[str, Any]) -> str:
    """Return the row of a format in the table."""
    cells = [
        *name.split(", "),
        ", ".join(f"{end:.4f}" for end in row["ends"]),
        f"{row['mean']:.4f}",
        f"{row['deviation']:.4f}",
        # + 0.0: no -0.0000
        f"{round(row['difference'], 4) + 0.0:+.4f} +- {row['difference_deviation']:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def page(facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Training in every storage format",
        "",
        f"The GPT of examples/ (a million parameters), AdamW {SETTINGS} with weight decay {DECAY} "
        f"for matrices, clipped at norm {MAX_GRAD_NORM:g}, {facts['steps']} steps, validation loss "
        f"in nats a byte of {facts['seeds']} seeds. In a seed all formats have the same batches "
        "and the same weights at the start, which are numbers of bf16. Parameters in bf16 are "
        "multiplied in float32, and evaluated as they are, without the extra bits.",
        "",
        f"{facts['cpu']}, {facts['threads']} thread(s); torch {facts['torch']}, Python "
        f"{facts['python']}, {facts['date']}, `{facts['command']}`.",
        "",
        "| parameters | weights | states | loss at the end, each seed | mean "
        "| deviation between seeds | beside fp32 |",
        "|---|---|---|---|---:|---:|---:|",
        *(line(name, row) for name, row in facts["rows"].items()),
        "",
        "Deviations are standard deviations over the seeds: of the loss, and, after +-, of the "
        "difference to fp32 on the same weights and batches.",
        "",
        "![loss of each format](formats_training.png)",
        "",
    ]
    return "\n".join(lines)


def plotted(facts: dict[str, Any], path: Path) -> None:
    """Draw the curves, and the difference of each format to the base at the end."""
    curves, rows = facts["curves"], facts["rows"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title(f"parameters, weights, states: mean of {facts['seeds']} seeds", loc="left")
    left.set_xlabel("step")
    left.set_ylabel("validation loss, nats a byte")
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:.1f}")
    left.yaxis.set_minor_formatter("{x:.1f}")
    for name in reversed(rows):
        ys = [
            statistics.mean(step) for step in zip(*(c[name].values() for c in curves), strict=True)
        ]
        label = name if name in MARKED else "all others" if name == list(rows)[-1] else None
        colour = MARKED.get(name, "#9ecae1")
        left.plot([int(step) for step in curves[0][name]], ys, color=colour, lw=1.2, label=label)
    left.legend(frameon=False, fontsize=9)
    right.set_title("difference to fp32 at the end: seeds, mean", loc="left")
    right.set_xlabel("nats a byte; grey: deviation of the loss between seeds")
    deviation = rows[BASE]["deviation"]
    right.axvspan(-deviation, deviation, color="#eeeeee")
    right.axvline(0, color="#000000", linewidth=0.8)
    for height, (name, row) in enumerate(rows.items()):
        colour = MARKED.get(name, "#2171b5")
        differences = [
            end - base for end, base in zip(row["ends"], rows[BASE]["ends"], strict=True)
        ]
        right.plot(differences, [height] * len(differences), "o", ms=4, color=colour, alpha=0.5)
        right.plot(row["difference"], height, "|", markersize=14, mew=2, color=colour)
    right.set_yticks(range(len(rows)), list(rows))
    right.locator_params(axis="x", nbins=6)
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run the trainings; return 1 if int8 ends more than ALLOWED above the base, else 0."""
    parser = make_parser(__doc__, steps=300)
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    given.output.mkdir(exist_ok=True, parents=True)
    path = given.output / "formats_training.json"
    if not given.draw:
        warnings.simplefilter("ignore")
        torch.set_num_threads(given.threads)
        curves = [trained(seed, given.steps) for seed in range(given.seeds)]
        facts = {
            **describe_training(given, "benchmarks.formats_training"),
            "rows": summarize(curves),
            "curves": curves,
        }
        path.write_text(json.dumps(facts, indent=1) + "\n")
    facts = json.loads(path.read_text())
    path.with_suffix(".md").write_text(page(facts))
    plotted(facts, path.with_suffix(".png"))
    print(page(facts))
    rows = facts["rows"]
    return int(rows["fp32, plain, int8"]["mean"] > (1 + ALLOWED) * rows[BASE]["mean"])


if __name__ == "__main__":
    sys.exit(main())
