"""Report at the end of a training: table, picture of the curves, sample of text."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .model import GPT
from .training import Run, Trio
from .verdict import Verdict, allowances, differences

PROMPT = b"def "
SAMPLE_LENGTH = 300
AVERAGED_STEPS = 20
# of training and validation: pale ones to lie under dark ones
TORCH_COLOURS = ("#9ecae1", "#fdae6b")
FUSED_COLOURS = ("#08306b", "#7f2704")


def table(runs: Trio, name: str) -> Table:
    """Return a table of the final numbers of the three runs."""
    peers = (runs.fused, runs.control)
    weights = [f"{weight_difference(run, runs.torch):.1e}" for run in peers]
    losses = [f"{differences(run, runs.torch).max():.1e}" for run in peers]
    times = [f"{1e3 * median(run.seconds):.2f} ms" for run in (runs.torch, runs.fused)]
    shown = Table(
        caption=f"training loss: mean of the last {AVERAGED_STEPS} steps; time: median; "
        "control: torch again, with every rounding done differently",
        caption_justify="left",
    )
    shown.add_column("")
    for heading in (f"torch.optim.{name}\n+ clip_grad_norm_", f"fused_optim.{name}", "control"):
        shown.add_column(heading, justify="right")
    shown.add_row("training loss", *map(training_loss, runs))
    shown.add_row("validation loss", *map(validation_loss, runs))
    shown.add_row("weights differ by <=", "", *weights)
    shown.add_row("losses differ by <=", "", *losses)
    shown.add_row("optimizer, a step", *times, "")
    shown.add_row("backend", "torch", getattr(runs.fused.optimizer, "backend_used", ""), "torch")
    return shown


def training_loss(run: Run) -> str:
    """Return the mean loss of the last steps; one batch alone says little."""
    return f"{fmean(run.losses[-AVERAGED_STEPS:]):.6f}"


def validation_loss(run: Run) -> str:
    """Return the last validation loss."""
    return f"{list(run.validation.values())[-1]:.6f}"


@torch.no_grad()
def weight_difference(run: Run, peer: Run) -> float:
    """Return the largest difference between the weights of two runs."""
    pairs = zip(run.model.parameters(), peer.model.parameters(), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def sentence(verdict: Verdict) -> str:
    """Say whether the curves are the same but for rounding."""
    where = (
        f"at step {verdict.step}, where they part most, they differ by {verdict.difference:.1e}; "
        f"rounding explains {verdict.allowed:.1e}"
    )
    if verdict.within_rounding:
        return f"The curves are one, but for rounding: {where}."
    return f"The curves part by more than rounding explains: {where}."


def draw(runs: Trio, name: str, first: int, path: Path) -> None:
    """Save the curves, one on the other, and their difference to ``path``."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    curves, gaps = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle("A small GPT, trained twice from the same weights on the same batches")
    draw_curves(curves, runs, name, first)
    draw_differences(gaps, runs, name, first)
    figure.savefig(path, dpi=130)


def draw_curves(axes: Axes, runs: Trio, name: str, first: int) -> None:
    """Draw the losses: torch's broad and pale, ours thin and dark on top of it."""
    steps = range(first + 1, first + 1 + len(runs.torch.losses))
    for run, label, (training, validation), size in (
        (runs.torch, f"torch.optim.{name} + clip_grad_norm_", TORCH_COLOURS, 4.0),
        (runs.fused, f"fused_optim.{name}(max_grad_norm=...)", FUSED_COLOURS, 1.0),
    ):
        axes.plot(steps, run.losses, color=training, linewidth=size, label=f"{label}: training")
        points = (list(run.validation), list(run.validation.values()))
        axes.plot(*points, "o", color=validation, ms=4 + size, label=f"{label}: validation")
    axes.set_ylabel("loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_differences(axes: Axes, runs: Trio, name: str, first: int) -> None:
    """Draw the difference of the losses, the effect of rounding and the allowed difference."""
    steps = range(first + 1, first + 1 + len(runs.torch.losses))
    axes.plot(steps, allowances(runs), "--", color="#cb181d", label="what rounding explains")
    for run, label, colour in (
        (runs.control, "control - torch, largest so far", "#969696"),
        (runs.fused, f"fused_optim.{name} - torch, largest so far", FUSED_COLOURS[0]),
    ):
        so_far = np.maximum.accumulate(differences(run, runs.torch))
        axes.plot(steps, so_far, color=colour, label=label)
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("difference of the training losses")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend()


def sample(model: GPT, seed: int, encoding: str) -> Panel:
    """Let the model write; what a terminal cannot print becomes a question mark."""
    written = model.sample(PROMPT, SAMPLE_LENGTH, seed).decode(errors="replace")
    readable = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in written)
    text = Text(readable.encode(encoding, "replace").decode(encoding))
    return Panel(text, title="what fused_optim's model writes", title_align="left")
