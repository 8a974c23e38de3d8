"""Optimizers compared: ``python -m examples.recipes.compare_optimizers``.

One net on the digits, and two functions of two variables on which the ways of the optimizers can be
seen. Each has a rate that suits it, found by trying factors of three; the picture is about the
shapes of the paths, and no ranking.

- **Rosenbrock**, ``(1 - x)**2 + 20 * (y - x**2)**2``: a curved valley, steep across and flat along,
  with the minimum at (1, 1). Plain SGD may not take larger steps than the walls allow, and creeps.
  Momentum and Nesterov swing along the valley; the methods that divide by the size of the gradient
  follow its floor; Lion's steps have the same length in both directions whatever the gradient.
  With a tenth of its rate, RMSprop begins like Adagrad: its average is a tenth of the sum at first.
- **A saddle**, ``x**2 / 2 - y**2 / 2 + y**4 / 4``: flat at (0, 0), with minima at y = 1 and y = -1.
  All start just beside the ridge, where the gradient along y is tiny. SGD lingers longest; where
  the step does not depend on the size of the gradient (Adam, RMSprop, Lion, Adagrad) the way out is
  as quick as the way in.

Muon makes the matrix of the momentum orthogonal, so it is for the matrices of hidden layers only:
on a function of two variables it does not apply, and it refuses a vector. In the net, ``Muon`` has
the hidden matrix, and a group with ``algorithm="adamw"`` the rest, in the same step. Schedule-free
AdamW takes gradients beside its result: ``eval()`` sets the average, which is drawn and evaluated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fused_optim as fo

from .common import Split, evaluate, load_digits, make_net, print_table, save, start, train_epoch

EPOCHS, STEPS = 4, 300
START = {"Rosenbrock": (-1.5, 1.5), "saddle": (-1.0, 0.01)}

# optimizer, options, rate for the net, for Rosenbrock and for the saddle
CHOICES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], tuple[float, ...]]] = {
    "SGD": (fo.SGD, {}, (0.1, 2e-3, 0.05)),
    "momentum": (fo.SGD, {"momentum": 0.9}, (0.03, 1e-3, 0.05)),
    "Nesterov": (fo.SGD, {"momentum": 0.9, "nesterov": True}, (0.03, 1e-3, 0.05)),
    "Adagrad": (fo.Adagrad, {}, (0.03, 0.3, 0.1)),
    "RMSprop": (fo.RMSprop, {}, (3e-3, 0.03, 0.01)),
    "Adam": (fo.Adam, {}, (3e-3, 0.1, 0.03)),
    "AdamW": (fo.AdamW, {"weight_decay": 0.01}, (3e-3, 0.1, 0.03)),
    "Lion": (fo.Lion, {}, (1e-3, 0.01, 0.02)),
    "schedule-free": (fo.ScheduleFreeAdamW, {}, (0.01, 0.3, 0.1)),
}


def rosenbrock(point: Tensor) -> Tensor:
    """Return Rosenbrock's function, with 20 in the place of 100, of a point [2, ...]."""
    x, y = point
    return (1 - x) ** 2 + 20 * (y - x**2) ** 2


def saddle(point: Tensor) -> Tensor:
    """Return the saddle, which has minima of -1/4, of a point [2, ...]."""
    x, y = point
    return x**2 / 2 - y**2 / 2 + y**4 / 4


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"Rosenbrock": rosenbrock, "saddle": saddle}


def set_mode(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Set a schedule-free optimizer to training or evaluation; others have no modes."""
    if isinstance(optimizer, (fo.ScheduleFreeAdamW, fo.ScheduleFreeSGD)):
        optimizer.train() if training else optimizer.eval()


def trace(name: str, function: str) -> Tensor:
    """Return the path [steps + 1, 2] of an optimizer on a function."""
    make, options, rates = CHOICES[name]
    point = torch.tensor(START[function], requires_grad=True)
    optimizer = make([point], lr=rates[1 + list(FUNCTIONS).index(function)], **options)
    path = [point.detach().clone()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        FUNCTIONS[function](point).backward()
        optimizer.step()
        set_mode(optimizer, training=False)
        path.append(point.detach().clone())
        set_mode(optimizer, training=True)
    return torch.stack(path)


def make_muon(net: nn.Module) -> fo.Muon:
    """Return Muon for the hidden matrix of the net, and AdamW for the rest in the same step."""
    names = [name for name, _ in net.named_parameters()]
    hidden = [p for name, p in net.named_parameters() if name == "2.weight"]
    rest = [p for name, p in net.named_parameters() if name != "2.weight"]
    assert len(hidden) == 1, names
    return fo.Muon(
        [{"params": hidden}, {"params": rest, "algorithm": "adamw", "lr": 3e-3}], lr=0.02
    )


def train_net(name: str, data: Split, seed: int) -> tuple[list[float], float]:
    """Return the loss of each batch, and the share of right answers on held-out digits."""
    torch.manual_seed(seed)
    net = make_net(64, 64, 64, 10)
    if name == "Muon":
        optimizer: torch.optim.Optimizer = make_muon(net)
    else:
        make, options, rates = CHOICES[name]
        optimizer = make(net.parameters(), lr=rates[0], **options)
    losses: list[float] = []
    for _ in range(EPOCHS):
        losses += train_epoch(net, optimizer, data)
    set_mode(optimizer, training=False)
    return losses, evaluate(net, data.held_out_inputs, data.held_out_targets)[1]


def draw(paths: dict[str, dict[str, Tensor]], nets: dict[str, tuple[list[float], float]]) -> Figure:
    """Draw the paths on the contours of both functions, and the losses of the net."""
    figure = Figure(figsize=(12.5, 4.5), layout="constrained")
    valley, ridge, curves = figure.subplots(1, 3)
    window = {"Rosenbrock": (-1.9, 1.9, -0.9, 2.2), "saddle": (-1.15, 0.9, -0.15, 1.35)}
    for axes, (function, f) in zip((valley, ridge), FUNCTIONS.items(), strict=True):
        left, right, low, high = window[function]
        grid = torch.meshgrid(
            torch.linspace(left, right, 150), torch.linspace(low, high, 150), indexing="xy"
        )
        heights = f(torch.stack(grid))
        heights = (heights - heights.min()).sqrt()
        axes.contour(*grid, heights, levels=8, antialiased=False, colors="0.8", linewidths=0.7)
        for i, (name, path) in enumerate(paths[function].items()):
            axes.plot(*path.T, color=f"C{i}", lw=1.4, label=name)
            axes.plot(*path[-1], "o", color=f"C{i}", ms=6)
        axes.set(title=f"{function}, {STEPS} steps", xlim=(left, right), ylim=(low, high))
    for i, (name, (losses, _)) in enumerate(nets.items()):
        color = "black" if name == "Muon" else f"C{i}"
        smooth = torch.tensor(losses).unfold(0, 5, 1).mean(1)
        curves.plot(smooth, color=color, lw=1.3, label=name)
    curves.set(title="A net on the digits", xlabel="step", ylabel="loss, mean of 5", yscale="log")
    curves.grid(alpha=0.3)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=10)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run all; return the paths by function and optimizer, and the results on the net."""
    options = start(__doc__, argv)
    data = load_digits()
    paths = {f: {name: trace(name, f) for name in CHOICES} for f in FUNCTIONS}
    nets = {name: train_net(name, data, options.seed) for name in [*CHOICES, "Muon"]}
    rows = []
    for name, (losses, right) in nets.items():
        ends = [FUNCTIONS[f](paths[f][name][-1]).item() if name in CHOICES else "-" for f in paths]
        away = paths["saddle"][name][:, 1].abs() > 0.5 if name in CHOICES else torch.zeros(1)
        leaves = int(away.int().argmax()) if away.any() else "-"
        rows.append((name, ends[0], ends[1], leaves, sum(losses[-10:]) / 10, right))
    columns = ("", "Rosenbrock", "saddle", "left at step", "loss of the net", "right, held out")
    print_table("Ends of the paths, and the net", columns, rows)
    save(draw(paths, nets), options, "compare_optimizers")
    return {"paths": paths, "nets": nets, "rows": {row[0]: row[1:] for row in rows}}


if __name__ == "__main__":
    main()
