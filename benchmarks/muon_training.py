"""Train the example's GPT with Muon beside AdamW, and with Muon in several storage formats.

``python -m benchmarks.muon_training`` takes 80 steps from each of three seeds, in a process each,
and writes ``muon_training.json``, ``.md`` and ``.png`` to benchmarks/results.
"""

import copy
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fused_optim
from benchmarks.gpt_formats import Format, describe_training, make_parser
from examples.gpt.corpus import Corpus, standard_library
from examples.gpt.model import GPT
from examples.gpt.training import MAX_GRAD_NORM, Run, Task, groups, step_alone, train

LOSS = 2.55  # nats a byte, to which the steps are counted
# the best of 2e-3, 4e-3 and 8e-3 for AdamW (5e-4 and 1e-3 were not better after 100 steps), and of
# 0.01, 0.02 and 0.04 for Muon, in 200 steps on a seed that is not used here
ADAMW = {"lr": 2e-3, "betas": (0.9, 0.99)}
MUON = {"lr": 0.02, "weight_decay": 0.1}
OTHERS = {"lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
BASE = "Muon, fp32"

FORMATS = {
    BASE: Format(torch.float32, {}),
    "Muon, states bf16": Format(torch.float32, {"states": "bf16"}),
    "Muon, states int8": Format(torch.float32, {"states": "int8"}),
    "Muon, states fp8": Format(torch.float32, {"states": "fp8"}),
    "Muon, master": Format(torch.bfloat16, {"weights": "master", "states": "fp32"}),
    "Muon, split": Format(torch.bfloat16, {"weights": "split", "states": "fp32"}),
    "Muon, split, states int8": Format(torch.bfloat16, {"weights": "split", "states": "int8"}),
}
COLOURS = dict(
    zip(
        FORMATS,
        ("#000000", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#d62728", "#8c564b"),
        strict=True,
    )
)


class TimedRun(Run):
    """A run that notes the processor time of each whole step, with forward and backward.

    The wall time would be that of a processor that the seeds share.
    """

    def __init__(self, *arguments: Any) -> None:
        """Create a run: see :class:`Run`."""
        super().__init__(*arguments)
        self.durations: list[float] = []

    def step(self, batch: Tensor) -> None:
        """Train on one batch."""
        start = time.process_time()
        super().step(batch)
        self.durations.append(time.process_time() - start)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups of Muon; the gains of the norms do not decay, as in the example."""
    return fused_optim.param_groups_for_muon(
        model, adamw=OTHERS, named={"*norm.weight": {"weight_decay": 0.0}}
    )


def start(task: Task) -> dict[str, TimedRun]:
    """Return all runs, from the same weights."""
    torch.manual_seed(task.seed)
    weights = GPT(task.shape)
    model = copy.deepcopy(weights)
    adamw = fused_optim.AdamW(groups(model, 0.1), **ADAMW, max_grad_norm=MAX_GRAD_NORM)
    runs = {"AdamW": TimedRun(model, adamw, step_alone, task)}
    for name, form in FORMATS.items():
        model = form.copy_of(weights)
        muon = fused_optim.Muon(
            muon_groups(model), **MUON, **form.options, max_grad_norm=MAX_GRAD_NORM
        )
        runs[name] = TimedRun(model, muon, step_alone, task)
    return runs


def trained(seed: int, steps: int, threads: int) -> dict[str, dict[str, Any]]:
    """Train all runs on the same batches; return curve and seconds of a step of each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    task = Task(Corpus.split(standard_library(), 64), steps, seed, torch.device("cpu"))
    runs = start(task)
    for done in train(task, runs.values(), 0, steps):
        if done % 20 == 0:
            print(f"seed {seed}: {done} of {steps} steps", file=sys.stderr, flush=True)
    return {
        name: {
            "curve": run.validation,
            "step": statistics.median(run.durations),
        }
        for name, run in runs.items()
    }


def steps_to(curve: dict[int, float], loss: float) -> float | None:
    """Return the step at which a curve falls to ``loss``, interpolated; None if it does not."""
    previous: tuple[int, float] | None = None
    for step, value in curve.items():
        if value <= loss:
            if previous is None:
                return float(step)
            before, above = previous
            return before + (step - before) * (above - loss) / (above - value)
        previous = step, value
    return None


def last(run: dict[str, Any]) -> float:
    """Return the validation loss at the end of a run."""
    return float(list(run["curve"].values())[-1])


def summarize(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the results of each run: steps and seconds to the loss, ends, differences."""
    rows = {}
    for name in seeds[0]:
        found = [steps_to(seed[name]["curve"], LOSS) for seed in seeds]
        reached = [steps for steps in found if steps is not None]
        step = statistics.median(seed[name]["step"] for seed in seeds)
        ends = [last(seed[name]) for seed in seeds]
        differences = [last(seed[name]) - last(seed[BASE]) for seed in seeds]
        rows[name] = {
            "steps": found,
            "mean_steps": statistics.mean(reached) if len(reached) == len(found) else None,
            "step_seconds": step,
            "ends": ends,
            "mean": statistics.mean(ends),
            "difference": statistics.mean(differences),
        }
    return rows


def plotted(seeds: list[dict[str, dict[str, Any]]], path: Path) -> None:
    """Draw the curves of all runs, and the differences of the formats, and save them."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title(f"Muon beside AdamW, {len(seeds)} seeds each", loc="left")
    left.set_ylabel("validation loss, nats a byte")
    left.set_ylim(2.1, 3.4)
    left.axhline(LOSS, color="#bbbbbb", linewidth=0.8)
    right.set_title("formats of Muon, less fp32 states: mean of the seeds", loc="left")
    right.axhline(0, color="#000000", linewidth=0.8)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    for name in seeds[0]:
        xs = list(seeds[0][name]["curve"])
        curves = [list(seed[name]["curve"].values()) for seed in seeds]
        colour = COLOURS.get(name, "#969696")
        for i, ys in enumerate(curves):
            label = name if i == 0 else None
            left.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.8, label=label)
        if name in FORMATS and name != BASE:
            base = [list(seed[BASE]["curve"].values()) for seed in seeds]
            pairs = zip(zip(*curves, strict=True), zip(*base, strict=True), strict=True)
            ys = [statistics.mean(a) - statistics.mean(b) for a, b in pairs]
            right.plot(xs, ys, color=colour, linewidth=1.2, label=name)
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def page(rows: dict[str, dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    spread = statistics.stdev(rows[BASE]["ends"]) if len(rows[BASE]["ends"]) > 1 else 0.0
    lines = [
        "# Training with Muon",
        "",
        f"The GPT of examples/ (a million parameters), {facts['steps']} steps, "
        f"{facts['seeds']} seeds, each with the same weights and batches for all runs. Muon {MUON} "
        f"with AdamW {OTHERS} for embeddings and gains, beside AdamW {ADAMW} with weight decay 0.1 "
        "for all; gains never decay. Clipped at norm 1. master and split are of bf16 parameters, "
        "multiplied in float32.",
        "",
        f"{facts['cpu']}, {facts['threads']} thread(s) a seed, shared with other work; torch "
        f"{facts['torch']}, Python {facts['python']}, {facts['date']}, `{facts['command']}`.",
        "",
        f"| run | steps to {LOSS} nats a byte | median step "
        f"| seconds to {LOSS} | loss at the end | beside fp32 states |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        steps = row["mean_steps"]
        cells = [
            name,
            "not all" if steps is None else f"{steps:.0f}",
            f"{row['step_seconds'] * 1e3:.0f} ms",
            "-" if steps is None else f"{steps * row['step_seconds']:.1f}",
            f"{row['mean']:.4f}",
            "-" if name == "AdamW" else f"{row['difference']:+.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"The standard deviation of the loss at the end over the seeds, with fp32 states, is "
        f"{spread:.4f}. Steps are interpolated between evaluations; times are of the processor.",
        "",
        "![curves](muon_training.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the trainings and write the results."""
    given = make_parser(__doc__, steps=80).parse_args()
    arguments = [(seed, given.steps, given.threads) for seed in range(given.seeds)]
    with multiprocessing.get_context("spawn").Pool(given.seeds) as pool:
        seeds = pool.starmap(trained, arguments)
    facts = describe_training(given, "benchmarks.muon_training")
    rows = summarize(seeds)
    given.output.mkdir(exist_ok=True, parents=True)
    content = {**facts, "rows": rows, "trainings": seeds}
    (given.output / "muon_training.json").write_text(json.dumps(content, indent=1) + "\n")
    (given.output / "muon_training.md").write_text(page(rows, facts))
    plotted(seeds, given.output / "muon_training.png")
    print(page(rows, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
