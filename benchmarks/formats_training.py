"""Train the example's GPT with the states of AdamW in several formats, curve on curve.

``python -m benchmarks.formats_training`` takes 1,000 steps from each of three seeds, and writes
``formats_training.json``, ``.md`` and ``.png`` to benchmarks/results.
"""

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import fused_optim
from examples.gpt.corpus import Corpus, standard_library
from examples.gpt.model import GPT
from examples.gpt.training import MAX_GRAD_NORM, Run, Task, groups, step_alone, train

RESULTS = Path(__file__).parent / "results"
FORMATS = {"fp32": "param", "int8": "int8"}
SETTINGS = {"lr": 2e-3, "weight_decay": 0.1, "betas": (0.9, 0.99)}  # those of the example
ALLOWED = 0.01  # of the validation loss with float32 states
COLOURS = {"fp32": "#969696", "int8": "#08306b"}


def trained(seed: int, steps: int) -> dict[str, dict[int, float]]:
    """Train a model in each format, from the same weights on the same batches.

    Returns:
        validation loss by step, by name of the format.
    """
    text = standard_library()
    task = Task(Corpus.split(text, 64), steps, seed, torch.device("cpu"))
    torch.manual_seed(seed)
    weights = GPT(task.shape)
    runs: dict[str, Run] = {}
    options: dict[str, Any] = dict(SETTINGS)
    decay = options.pop("weight_decay")
    for name, states in FORMATS.items():
        model = copy.deepcopy(weights)
        optimizer = fused_optim.AdamW(
            groups(model, decay), **options, states=states, max_grad_norm=MAX_GRAD_NORM
        )
        runs[name] = Run(model, optimizer, step_alone, task)
    for done in train(task, runs.values(), 0, steps):
        if done % 100 == 0:
            print(f"seed {seed}: {done} of {steps} steps", file=sys.stderr, flush=True)
    return {name: run.validation for name, run in runs.items()}


def plotted(curves: list[dict[str, dict[int, float]]], path: Path) -> None:
    """Draw all curves, labelled with the mean of the last losses, and save them to ``path``."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title("AdamW with states of 4 bytes and of 1 byte, three seeds each", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats a byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_yscale("log")
    for offset, name in enumerate(FORMATS):
        for seed in curves:
            xs, ys = list(seed[name]), list(seed[name].values())
            axes.plot(xs, ys, color=COLOURS[name], linewidth=1, alpha=0.8)
        end = statistics.mean(list(seed[name].values())[-1] for seed in curves)
        label = f"{name}: {end:.4f} at the end, mean of {len(curves)}"
        axes.text(
            0.98,
            0.95 - 0.06 * offset,
            label,
            color=COLOURS[name],
            ha="right",
            va="top",
            transform=axes.transAxes,
        )
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run the trainings; return 1 if int8 ends more than ALLOWED above float32, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    curves = [trained(seed, given.steps) for seed in range(given.seeds)]
    ends = {name: [list(seed[name].values())[-1] for seed in curves] for name in FORMATS}
    means = {name: statistics.mean(found) for name, found in ends.items()}
    ratios = {name: mean / means["fp32"] for name, mean in means.items()}
    facts = {
        "steps": given.steps,
        "ends": ends,
        "means": means,
        "ratios": ratios,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.formats_training",
        "curves": curves,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "formats_training.json").write_text(json.dumps(facts, indent=1) + "\n")
    plotted(curves, RESULTS / "formats_training.png")
    rows = [
        f"| {name} | {', '.join(f'{end:.4f}' for end in ends[name])} | {means[name]:.4f} "
        f"| {100 * (ratios[name] - 1):+.2f} % |"
        for name in FORMATS
    ]
    table = [
        "# Training with states in 8 bits",
        "",
        f"The GPT of examples/ (a million parameters, fp32), AdamW {SETTINGS}, {given.steps} "
        f"steps, validation loss of {given.seeds} seeds. torch {torch.__version__}, "
        f"{facts['date']}, `{facts['command']}`.",
        "",
        "| states | validation loss at the end | mean | beside fp32 |",
        "|---|---|---|---|",
        *rows,
        "",
        "![curves](formats_training.png)",
        "",
    ]
    (RESULTS / "formats_training.md").write_text("\n".join(table))
    print("\n".join(rows))
    return int(ratios["int8"] > 1 + ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
