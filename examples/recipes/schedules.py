"""Learning-rate schedules and a range test: ``python -m examples.recipes.schedules``.

Every schedule of ``torch.optim.lr_scheduler`` works with fused_optim, for it only writes
``group["lr"]``: the step reads the rate as data, so a schedule compiles nothing. A seventh of the
labels of the digits is wrong here, so that the gradients of the batches keep disagreeing and a high
rate never settles.

The first plot has the rates, the second the loss on held-out digits after each epoch. The constant
rate stays noisy and ends with the highest loss. The linear, exponential, step and cosine schedules
and the one that follows a metric (``ReduceLROnPlateau``, given the loss) end at a small rate, and
settle. Cosine begins with a warm-up and restarts once, where the loss rises again for a while. The
cyclic schedule has no end: evaluate it where its rate is low.

The range test (third plot) chooses the rate that a schedule starts from: one training in which the
rate grows by the same factor at each step. A rate is **too small** while it lowers the loss by less
than a tenth of what the test lowers it by at best, and **too large** from where the loss is no
longer near its lowest. The three marked rates are judged, and trained with: the table has the loss
after an epoch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import lr_scheduler as lrs

from fused_optim import SGD

from .common import Split, evaluate, load_digits, make_net, print_table, save, start, train_epoch

EPOCHS, BATCH, RATE = 12, 32, 0.2
JUDGED = (1e-5, 0.05, 3.0)  # rates for the range test


def warm_up_and_restart(optimizer: SGD, steps: int) -> lrs.LRScheduler:
    """Return a linear warm-up, and then two cosine periods of equal length."""
    warm_up = steps // 12
    first = lrs.LinearLR(optimizer, 0.05, total_iters=warm_up)
    second = lrs.CosineAnnealingWarmRestarts(optimizer, math.ceil((steps - warm_up) / 2))
    return lrs.SequentialLR(optimizer, [first, second], [warm_up])


# schedules that are told of each step, of the optimizer and the number of steps
SCHEDULES: dict[str, Callable[[SGD, int], lrs.LRScheduler]] = {
    "constant": lambda optimizer, steps: lrs.ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer, steps: lrs.LinearLR(optimizer, 1.0, 0.01, total_iters=steps),
    "exponential": lambda optimizer, steps: lrs.ExponentialLR(optimizer, 0.01 ** (1 / steps)),
    "step": lambda optimizer, steps: lrs.StepLR(optimizer, math.ceil(steps / 3), 0.1),
    "cosine, warm-up, restart": warm_up_and_restart,
    "cyclic": lambda optimizer, steps: lrs.CyclicLR(
        optimizer, RATE / 100, RATE, steps // 6, cycle_momentum=False
    ),
    "on a metric": lambda optimizer, steps: lrs.ReduceLROnPlateau(optimizer, patience=1),
}


def make_net_and_optimizer(rate: float, seed: int) -> tuple[nn.Module, SGD]:
    """Return a net with weights drawn by the seed, and its optimizer."""
    torch.manual_seed(seed)
    net = make_net(64, 64, 10)
    return net, SGD(net.parameters(), lr=rate, momentum=0.9)


def run(name: str, data: Split, seed: int) -> dict[str, list[float]]:
    """Train with a schedule; return the rate of each step, and the held-out loss by epoch."""
    net, optimizer = make_net_and_optimizer(RATE, seed)
    steps = EPOCHS * math.ceil(len(data.targets) / BATCH)
    schedule = SCHEDULES[name](optimizer, steps)
    by_metric = isinstance(schedule, lrs.ReduceLROnPlateau)
    rates: list[float] = []

    def after_step() -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        if not by_metric:
            schedule.step()

    losses = []
    for _ in range(EPOCHS):
        train_epoch(net, optimizer, data, BATCH, after_step)
        losses.append(evaluate(net, data.held_out_inputs, data.held_out_targets)[0])
        if by_metric:
            schedule.step(losses[-1])
    return {"rates": rates, "losses": losses}


class RangeTest(NamedTuple):
    """Rates of a range test, with the smoothed loss at each."""

    rates: list[float]
    losses: list[float]

    def judge(self, rate: float) -> str:
        """Return ``"too small"``, ``"right"`` or ``"too large"``."""
        best = min(self.losses)
        tenth = (self.losses[0] - best) / 10
        lowers = next(r for r, loss in zip(*self, strict=True) if loss < self.losses[0] - tenth)
        if rate < lowers:
            return "too small"
        bottom = self.losses.index(best)
        later = zip(self.rates[bottom:], self.losses[bottom:], strict=True)
        limit = next((r for r, loss in later if not loss <= best + tenth), math.inf)  # NaN too
        return "right" if rate < limit else "too large"


def run_range_test(data: Split, seed: int) -> RangeTest:
    """Train while the rate grows from 1e-6 to 10 by the same factor at each step."""
    net, optimizer = make_net_and_optimizer(1e-6, seed)
    rates, losses = [], []

    def after_step() -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["lr"] *= 10**0.04

    while len(losses) < 175:
        losses += train_epoch(net, optimizer, data, BATCH, after_step)
    smooth, average = [], losses[0]
    for loss in losses:
        average = 0.8 * average + 0.2 * loss
        smooth.append(average)
    return RangeTest(rates, smooth)


def train_at(rate: float, data: Split, seed: int) -> float:
    """Return the mean loss of the last ten batches of an epoch at a constant rate."""
    return sum(train_epoch(*make_net_and_optimizer(rate, seed), data, BATCH)[-10:]) / 10


def draw(runs: dict[str, dict[str, list[float]]], test: RangeTest) -> Figure:
    """Draw rates, held-out losses and the range test."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    rates, losses, tested = figure.subplots(1, 3)
    for name, run_ in runs.items():
        epochs = [step * EPOCHS / len(run_["rates"]) for step in range(len(run_["rates"]))]
        rates.plot(epochs, run_["rates"], label=name, lw=1.3)
        losses.plot(range(1, EPOCHS + 1), run_["losses"], label=name, lw=1.3)
    rates.set(title="Rates", xlabel="epoch", ylabel="learning rate", yscale="log")
    losses.set(title="Losses", xlabel="epoch", ylabel="held-out loss", ylim=(0.2, 1.0))
    losses.legend(fontsize=8)
    tested.plot(test.rates, test.losses, color="black", lw=1.3)
    for rate in JUDGED:
        tested.axvline(rate, ls="--", color="tab:red")
        tested.text(rate, 3.9, f" {test.judge(rate)}", color="tab:red", va="top")
    tested.set(title="Range test", xlabel="learning rate", ylabel="smoothed loss")
    tested.set(xscale="log", ylim=(0, 4))
    for axes in (rates, losses, tested):
        axes.grid(alpha=0.3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run every schedule and the range test; return the runs, and the judged rates."""
    options = start(__doc__, argv)
    data = load_digits()
    wrong = torch.rand(len(data.targets)) < 1 / 7
    data.targets[wrong] = torch.randint(10, (int(wrong.sum()),))
    runs = {name: run(name, data, options.seed) for name in SCHEDULES}
    rows = []
    for name, (rates, losses) in ((name, r.values()) for name, r in runs.items()):
        last = sum(losses[-3:]) / 3
        rows.append((name, rates[0], max(rates), rates[-1], min(losses), last))
    columns = ("schedule", "first rate", "largest", "last", "lowest loss", "last three")
    print_table("Schedules: rates, and losses on held-out digits", columns, rows)
    test = run_range_test(data, options.seed)
    judged = {rate: (test.judge(rate), train_at(rate, data, options.seed)) for rate in JUDGED}
    rows = [(f"{rate:g}", *result) for rate, result in judged.items()]
    print_table("Range test", ("rate", "judged", "loss after an epoch"), rows)
    save(draw(runs, test), options, "schedules")
    return {"runs": runs, "judged": judged}


if __name__ == "__main__":
    main()
