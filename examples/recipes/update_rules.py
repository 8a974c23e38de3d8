"""The update rules by hand: ``python -m examples.recipes.update_rules``.

Linear regression of four points, ``[1, 2], [2, 3], [3, 4], [4, 5]`` with the targets 3, 4, 5, 6,
which the weights -1 and 2 meet exactly. Each rule is a few lines of numpy, and runs beside ours on
the same gradients: after every step both have the same weights, but for rounding in float64.

- **Gradient descent** takes the gradient of all points (full batch), of one point (single sample)
  or of two (mini-batch). The full batch falls at every step; the others are noisy, and cheaper.
- **Momentum** follows a sum of the past gradients. One direction of this problem is 351 times as
  steep as the other: descent is bound to the rate that the steep one bears, momentum is faster.
- **Adam** divides an average of the gradients by the root of an average of their squares. Both
  averages begin at 0 and are too small at first: ``1 - beta ** step`` corrects them.

Two mistakes are made often. Without the root in Adam's denominator the step is proportional to
``1 / gradient``, and so depends on the unit of the loss. With the root, a thousandth of the loss
gives the same path; without it the same rate hardly moves for the one and overshoots for the other.
And the count of steps begins at 1: with 0 the correction divides by ``1 - beta ** 0 = 0``, and all
weights are NaN after the first step.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import fused_optim

from .common import print_table, save, start

Array = NDArray[np.float64]

POINTS = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]])
TARGETS = np.array([3.0, 4.0, 5.0, 6.0])
STEPS, RATE, ADAM_RATE = 200, 0.01, 0.1
BETAS, EPS = (0.9, 0.999), 1e-8


def form_mse(weights: Array) -> float:
    """Return the mean squared error over all points."""
    return float(np.mean((POINTS @ weights - TARGETS) ** 2))


def form_gradient(weights: Array, rows: Array) -> Array:
    """Return the gradient of the mean squared error over the points ``rows``, by hand."""
    errors = POINTS[rows] @ weights - TARGETS[rows]
    return 2 / len(rows) * POINTS[rows].T @ errors


def run_descent(batches: Sequence[Array], momentum: float = 0.0) -> list[Array]:
    """Return the weights after each step of gradient descent: ``w -= rate * velocity``."""
    weights, velocity, path = np.zeros(2), np.zeros(2), []
    for rows in batches:
        velocity = momentum * velocity + form_gradient(weights, rows)
        weights = weights - RATE * velocity
        path.append(weights)
    return path


def run_adam(
    batches: Sequence[Array], *, root: bool = True, first: int = 1, unit: float = 1.0
) -> list[Array]:
    """Return the weights after each step of Adam on the loss in some unit.

    Without the root, and with another first step than 1, it is a mistake.
    """
    weights, mean, square, path = np.zeros(2), np.zeros(2), np.zeros(2), []
    for step, rows in enumerate(batches, first):
        gradient = unit * form_gradient(weights, rows)
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        with np.errstate(divide="ignore", invalid="ignore"):  # of the mistake first=0
            mean_hat = mean / (1 - BETAS[0] ** step)
            square_hat = square / (1 - BETAS[1] ** step)
            denominator = (np.sqrt(square_hat) if root else square_hat) + EPS
            weights = weights - ADAM_RATE * mean_hat / denominator
        path.append(weights)
    return path


def run_ours(
    batches: Sequence[Array], make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
) -> list[Array]:
    """Return the weights after each step of one of our optimizers, with torch's gradients."""
    points, targets = torch.from_numpy(POINTS), torch.from_numpy(TARGETS)
    weights, path = torch.zeros(2, dtype=torch.float64, requires_grad=True), []
    optimizer = make([weights])
    for rows in map(torch.from_numpy, batches):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(points[rows] @ weights, targets[rows]).backward()
        optimizer.step()
        path.append(weights.detach().numpy().copy())
    return path


def draw(curves: dict[str, list[float]], ours: dict[str, list[float]]) -> Figure:
    """Draw the error by step: numpy as lines, ours as dots on them, and the mistakes beside."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    rules, mistakes = figure.subplots(1, 2, sharey=True)
    for name, errors in ours.items():
        (line,) = rules.plot(curves[name], label=name, lw=1.2)
        rules.plot(range(0, STEPS + 1, 10), errors[::10], "o", ms=4, color=line.get_color())
    mistakes.plot(curves["Adam"], label="Adam", lw=4, color="0.8")
    for name in list(curves)[len(ours) :]:
        dots = "x" if name == "count from 0: NaN" else ""
        mistakes.plot(curves[name], label=name, lw=1.2, marker=dots, ms=9)
    rules.set(title="numpy (lines) and fused_optim (dots)", ylabel="mean squared error")
    mistakes.set(title="Mistakes in Adam")
    for axes in (rules, mistakes):
        axes.set(xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[list[float], float | None]]:
    """Run every rule; return its errors by step, and the largest difference from ours."""
    options = start(__doc__, argv)
    draw_rows = np.random.default_rng(options.seed)
    full = [np.arange(4)] * STEPS
    pairs = [rows for _ in range(STEPS // 2) for rows in draw_rows.permutation(4).reshape(2, 2)]
    singles = [rows for _ in range(STEPS // 4) for rows in draw_rows.permutation(4).reshape(4, 1)]
    sgd, adam = fused_optim.SGD, fused_optim.Adam
    rules = {
        "full batch": (full, run_descent(full), lambda p: sgd(p, lr=RATE)),
        "single sample": (singles, run_descent(singles), lambda p: sgd(p, lr=RATE)),
        "mini-batch of 2": (pairs, run_descent(pairs), lambda p: sgd(p, lr=RATE)),
        "momentum": (full, run_descent(full, 0.9), lambda p: sgd(p, lr=RATE, momentum=0.9)),
        "Adam": (full, run_adam(full), lambda p: adam(p, lr=ADAM_RATE, betas=BETAS, eps=EPS)),
        "Adam, loss / 1000": (full, run_adam(full, unit=1e-3), None),
        "no root": (full, run_adam(full, root=False), None),
        "no root, loss / 1000": (full, run_adam(full, root=False, unit=1e-3), None),
        "count from 0: NaN": (full, run_adam(full, first=0), None),
    }
    curves, ours, results = {}, {}, {}
    for name, (batches, path, make) in rules.items():
        curves[name] = [form_mse(weights) for weights in [np.zeros(2), *path]]
        difference = None
        if make is not None:
            other = run_ours(batches, make)
            difference = float(np.abs(np.array(other) - np.array(path)).max())
            ours[name] = [form_mse(weights) for weights in [np.zeros(2), *other]]
        results[name] = (curves[name], difference)
    rows = [
        (name, e[0], e[20], e[-1], "-" if gap is None else gap)
        for name, (e, gap) in results.items()
    ]
    columns = ("rule", "MSE at first", "after 20", f"after {STEPS}", "difference")
    print_table("Weights by hand and by fused_optim", columns, rows)
    save(draw(curves, ours), options, "update_rules")
    return results


if __name__ == "__main__":
    main()
