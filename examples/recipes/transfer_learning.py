"""Transfer learning: ``python -m examples.recipes.transfer_learning``.

A net learns to tell the ten digits, and then whether a digit is odd, from 40 examples. Its body is
kept, its head is new, and the training unfreezes it in three stages of 20 epochs:

1. All of the body is frozen, and the head is trained. ``requires_grad = False`` before the first
   backward is what freezes: a frozen parameter has no gradient, so weight decay does not touch it
   either, and its bits stay the same.
2. The upper layers join with a third of the rate of the head: ``add_param_group``.
3. The lower layers join with a tenth of it.

The groups have their own rates, yet one launch updates them all: ``optimizer.explain()`` prints the
launch of each parameter. The plot has the share of right answers on held-out digits, with a line
where layers join, beside the same net trained from random weights on the same 40 examples: what the
body has learned from the ten digits is worth more than what 40 examples can teach. The head alone
takes most of that; layers that join at a low rate change little, as there is little to learn from.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from fused_optim import AdamW

from .common import Split, evaluate, load_digits, make_net, print_table, save, start, train_epoch

STAGES, EPOCHS, RATE, EXAMPLES = 3, 20, 3e-3, 40
LOWER, UPPER, HEAD = 0, 2, 4  # indices of the linear layers


def ask_whether_odd(digits: Split) -> Split:
    """Return the task of odd or even, with few examples to train on."""
    inputs, targets, held_out_inputs, held_out_targets = digits
    few = slice(EXAMPLES)
    return Split(inputs[few], targets[few] % 2, held_out_inputs, held_out_targets % 2)


def freeze(net: nn.Sequential) -> None:
    """Freeze all parameters."""
    for param in net.parameters():
        param.requires_grad_(False)


def unfreeze(layer: nn.Module) -> list[nn.Parameter]:
    """Let the parameters of a layer be trained again, and return them."""
    return [param.requires_grad_(True) for param in layer.parameters()]


def copy_weights(net: nn.Sequential) -> dict[str, Tensor]:
    """Return a copy of all weights by name."""
    return copy.deepcopy(net.state_dict())


def transfer(net: nn.Sequential, data: Split) -> dict[str, Any]:
    """Train a new head on the net, and unfreeze layers from the top.

    Returns:
        The share of right answers by epoch, the weights at the end of each stage, the first of
        which is before them all, and the launch and rate of each parameter in the last stage.
    """
    freeze(net)
    net[HEAD] = nn.Linear(64, 2)
    optimizer = AdamW(net[HEAD].parameters(), lr=RATE, weight_decay=0.1)
    joins: list[tuple[int, float]] = [(UPPER, RATE / 3), (LOWER, RATE / 10)]
    right, stages = [], [copy_weights(net)]
    for stage in range(STAGES):
        if stage:
            layer, rate = joins[stage - 1]
            optimizer.add_param_group({"params": unfreeze(net[layer]), "lr": rate})
        for _ in range(EPOCHS):
            train_epoch(net, optimizer, data, batch=10)
            right.append(evaluate(net, data.held_out_inputs, data.held_out_targets)[1])
        stages.append(copy_weights(net))
    explanation = optimizer.explain()
    Console().print(explanation)
    launches = [row.launch for row in explanation.rows]
    rates = [group["lr"] for group in optimizer.param_groups]
    return {"right": right, "stages": stages, "launches": launches, "rates": rates}


def train_from_random(data: Split) -> list[float]:
    """Train a net from random weights, and return the share of right answers by epoch."""
    net = make_net(64, 64, 64, 2)
    optimizer = AdamW(net.parameters(), lr=RATE, weight_decay=0.1)
    right = []
    for _ in range(STAGES * EPOCHS):
        train_epoch(net, optimizer, data, batch=10)
        right.append(evaluate(net, data.held_out_inputs, data.held_out_targets)[1])
    return right


def draw(transferred: list[float], random: list[float]) -> Figure:
    """Draw the shares of right answers by epoch."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(transferred) + 1), transferred, label="transferred")
    axes.plot(range(1, len(random) + 1), random, label="from random weights")
    for stage, text in enumerate(("head alone", "upper layer joins", "lower layer joins")):
        axes.axvline(stage * EPOCHS, color="0.5", ls="--", lw=1)
        axes.text(stage * EPOCHS + 0.5, 0.52, text, color="0.3")
    axes.set(title="Odd or even, from 40 examples", xlabel="epoch", ylim=(0.5, 1))
    axes.set(ylabel="right answers, held out")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, transfer, and compare with random weights."""
    options = start(__doc__, argv)
    digits = load_digits()
    odd = ask_whether_odd(digits)
    net = make_net(64, 64, 64, 10)
    optimizer = AdamW(net.parameters(), lr=RATE)
    for _ in range(25):
        train_epoch(net, optimizer, digits)
    result = transfer(net, odd)
    result["random"] = train_from_random(odd)
    rows = []
    for stage, (before, after) in enumerate(
        zip(result["stages"], result["stages"][1:], strict=False)
    ):
        end = (stage + 1) * EPOCHS - 1
        changed = [name for name in after if not torch.equal(before[name], after[name])]
        layers = ", ".join(sorted({name.partition(".")[0] for name in changed}))
        rows.append((stage + 1, layers, result["right"][end], result["random"][end]))
    columns = ("stage", "changed layers", "right, transferred", "from random weights")
    print_table("Frozen and trained layers", columns, rows)
    save(draw(result["right"], result["random"]), options, "transfer_learning")
    return result


if __name__ == "__main__":
    main()
