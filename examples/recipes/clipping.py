"""Clipping: ``python -m examples.recipes.clipping``.

A recurrent net with ReLU reads the digits four pixels at a time, in 16 steps of time. Its
recurrent matrix is 1.8 times an orthogonal one, and ReLU drops about half of what it is given, so
each step of time multiplies a gradient by some 1.8 / sqrt(2), and by more where training makes the
matrix larger: gradients explode.

- **By norm**: ``max_grad_norm=1`` scales all gradients by one factor if their norm is above 1, as
  ``clip_grad_norm_`` does, but inside the step. The direction stays.
- **By value**: ``max_grad_value=0.05`` limits each element on its own. The direction changes.
- ``max_grad_norm=math.inf`` never clips and only computes the norm: it is how the norm is reported
  for the run without clipping and for the one by value.

``optimizer.grad_norm`` is the norm before clipping, and ``optimizer.clip_factor`` what the
gradients were multiplied by. The first plot has the norm of each step. Without clipping a step
along a huge gradient throws the net to where its loss is huge as well, until it is no longer
finite, and the line ends. With either clipping the norm is as large at first, but the loss (second
plot) falls.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fused_optim import SGD

from .common import Split, iterate_batches, load_digits, print_table, save, start

STEPS, BATCH, RATE, GAIN, PIXELS = 120, 32, 0.03, 1.8, 4
WAYS: dict[str, dict[str, float]] = {
    "no clipping": {"max_grad_norm": math.inf},
    "by norm": {"max_grad_norm": 1.0},
    "by value": {"max_grad_norm": math.inf, "max_grad_value": 0.05},
}


class DigitReader(nn.Module):
    """A recurrent net that reads a few pixels in each step of time."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.RNN(PIXELS, 32, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(32, 10)
        nn.init.orthogonal_(self.recurrent.weight_hh_l0, gain=GAIN)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return scores [n, 10] of digits [n, 64]."""
        hidden, _ = self.recurrent(pixels.unflatten(1, (-1, PIXELS)))
        return self.head(hidden[:, -1])


def run(data: Split, seed: int, **clipping: float) -> dict[str, list[float]]:
    """Train; return loss, reported norm and clip factor of each step, until one is not finite."""
    torch.manual_seed(seed)
    net = DigitReader()
    optimizer = SGD(net.parameters(), lr=RATE, momentum=0.9, **clipping)
    curves: dict[str, list[float]] = {"loss": [], "norm": [], "factor": []}
    while len(curves["loss"]) < STEPS:
        for inputs, targets in iterate_batches(data, BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            norm, factor = float(optimizer.grad_norm), float(optimizer.clip_factor)
            for key, value in (("loss", loss.item()), ("norm", norm), ("factor", factor)):
                curves[key].append(value)
            if not math.isfinite(norm):
                return curves
    return {key: values[:STEPS] for key, values in curves.items()}


def draw(runs: dict[str, dict[str, list[float]]]) -> Figure:
    """Draw the reported norms and the losses."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    norms, losses = figure.subplots(1, 2)
    for name, curves in runs.items():
        norms.plot(curves["norm"], label=name, lw=1.2)
        losses.plot(curves["loss"], label=name, lw=1.2)
    norms.axhline(1.0, color="black", ls="--", lw=1, label="max_grad_norm=1")
    norms.set(title="Reported norm, before clipping", ylabel="norm", yscale="log")
    losses.set(title="Training loss", ylabel="loss", yscale="log")
    for axes in (norms, losses):
        axes.set(xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run with each way of clipping; return the curves."""
    options = start(__doc__, argv)
    data = load_digits()
    runs = {name: run(data, options.seed, **clipping) for name, clipping in WAYS.items()}
    rows = []
    for name, curves in runs.items():
        losses, norms, factors = curves["loss"], curves["norm"], curves["factor"]
        clipped = sum(factor < 1 for factor in factors)
        last = sum(losses[-10:]) / len(losses[-10:])
        rows.append((name, len(losses), losses[0], last, max(norms), clipped, min(factors)))
    columns = (
        "",
        "steps",
        "first loss",
        "last ten",
        "largest norm",
        "clipped by it",
        "least factor",
    )
    print_table("A recurrent net with exploding gradients", columns, rows)
    save(draw(runs), options, "clipping")
    return runs


if __name__ == "__main__":
    main()
