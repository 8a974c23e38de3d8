"""Regularization: ``python -m examples.recipes.regularization``.

A wide net and only 200 digits to train on, a fifth of them with a random label, so that it learns
them by heart.

- **L1** in the step: ``l1=`` adds ``l1 * sign(p)`` to the gradient, within the update. Weights that
  the loss does not need go to zero. A gradient step lands on the exact zero only by chance; it ends
  within a few steps of it, so the share of weights below 0.01 is what to look at (first plot).
- **L2 against decoupled decay** with Adam. ``Adam(weight_decay=)`` adds the penalty to the
  gradient, and Adam divides the sum by its size: a weight with large gradients hardly decays.
  ``AdamW`` takes ``lr * weight_decay * p`` from every weight alike. The second plot has weights
  that start at 1 and whose gradients alternate between plus and minus some size: nothing but decay
  moves them.
- **Dropout** and **early stopping** (third plot): the loss on held-out digits falls and rises again
  as the net learns by heart. Early stopping keeps the weights of the best epoch, and ends after ten
  epochs without a better one. Dropout trains another part of the net at each step: its loss
  hardly rises again.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fused_optim import Adam, AdamW

from .common import Split, evaluate, load_digits, make_net, print_table, save, start, train_epoch

EPOCHS, PATIENCE, RATE, NEAR_ZERO = 50, 10, 3e-3, 0.01
DECAY, DECAY_STEPS, DECAY_RATE = 1.0, 500, 2e-3


def make_model(dropout: float) -> nn.Sequential:
    """Return the net, with dropout before its last layer."""
    net = make_net(64, 128, 10)
    return net.insert(2, nn.Dropout(dropout))


def train(data: Split, seed: int, dropout: float = 0.0, **options: float) -> dict[str, Any]:
    """Train with AdamW; return the held-out losses by epoch, the last net and the best one.

    Early stopping is applied afterwards, so that the plot shows what it saves from: ``stopped`` is
    the epoch at which it would have ended the training, ``best`` the one whose weights it keeps.
    """
    torch.manual_seed(seed)
    net = make_model(dropout)
    optimizer = AdamW(net.parameters(), lr=RATE, weight_decay=0.0, **options)
    losses: list[float] = []
    best, kept, stopped = 0, net, None
    for epoch in range(EPOCHS):
        train_epoch(net, optimizer, data, batch=32)
        losses.append(evaluate(net, data.held_out_inputs, data.held_out_targets)[0])
        if stopped is None and losses[-1] <= losses[best]:
            best, kept = epoch, copy.deepcopy(net)
        elif stopped is None and epoch - best >= PATIENCE:
            stopped = epoch
    return {"losses": losses, "net": net, "best": best, "kept": kept, "stopped": stopped}


def list_weights(net: nn.Module) -> Tensor:
    """Return all weights of the linear layers, without biases, in one vector."""
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.dim() == 2])


def decay_weights(sizes: Tensor, make: type[Adam] | type[AdamW]) -> Tensor:
    """Return weights that began at 1, after steps with gradients of ``sizes`` and changing sign."""
    weights = torch.ones_like(sizes, requires_grad=True)
    optimizer = make([weights], lr=DECAY_RATE, weight_decay=DECAY)
    for step in range(DECAY_STEPS):
        weights.grad = sizes * (-1) ** step
        optimizer.step()
    return weights.detach()


def draw(runs: dict[str, dict[str, Any]], sizes: Tensor, decayed: dict[str, Tensor]) -> Figure:
    """Draw the sizes of weights with L1, the decayed weights, and the held-out losses."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    histogram, decay, curves = figure.subplots(1, 3)
    bins = torch.logspace(-6, 0, 49).tolist()
    for name in ("plain", "L1"):
        sizes_of_weights = list_weights(runs[name]["net"]).abs().clamp(min=1e-6)
        histogram.hist(sizes_of_weights.tolist(), bins, alpha=0.6, label=name)
    histogram.axvline(NEAR_ZERO, color="black", ls="--", lw=1)
    histogram.set(title="Weights with L1", xscale="log", xlabel="absolute value", ylabel="weights")
    for name, weights in decayed.items():
        decay.plot(sizes, weights, "o-", ms=4, label=name)
    decay.set(title="A weight of 1, decayed", xscale="log", ylim=(0, 1.05))
    decay.set(xlabel="size of its gradients", ylabel=f"after {DECAY_STEPS} steps")
    for i, name in enumerate(("plain", "dropout")):
        losses, best, stopped = (runs[name][key] for key in ("losses", "best", "stopped"))
        curves.plot(range(1, EPOCHS + 1), losses, color=f"C{i}", label=name)
        curves.plot(best + 1, losses[best], "*", color=f"C{i}", ms=14, label=f"{name}: best epoch")
        if stopped is not None:
            curves.plot(
                stopped + 1, losses[stopped], "x", color=f"C{i}", ms=9, label=f"{name}: stop"
            )
    curves.set(title="Held-out loss", xlabel="epoch", ylabel="loss", ylim=(0.45, 1.2))
    for axes in (histogram, decay, curves):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run all; return the runs, the shares of small weights, and the decayed weights."""
    options = start(__doc__, argv)
    data = load_digits()
    data = data._replace(inputs=data.inputs[:200], targets=data.targets[:200].clone())
    data.targets[:40] = torch.randint(10, (40,))
    runs = {
        "plain": train(data, options.seed),
        "L1": train(data, options.seed, l1=2e-3),
        "dropout": train(data, options.seed, dropout=0.5),
    }
    rows, shares = [], {}
    for name, run in runs.items():
        weights = list_weights(run["net"]).abs()
        shares[name] = (weights < NEAR_ZERO).float().mean().item()
        exact = int((weights == 0).sum())
        losses = run["losses"]
        rows.append((name, losses[-1], losses[run["best"]], run["best"] + 1, shares[name], exact))
    columns = ("", "last loss", "lowest", "in epoch", f"share < {NEAR_ZERO}", "exact zeros")
    print_table("Held-out loss, and small weights", columns, rows)
    sizes = torch.logspace(-3, 1, 17)
    decayed = {"Adam (L2)": decay_weights(sizes, Adam), "AdamW": decay_weights(sizes, AdamW)}
    ends = [(name, weights[0].item(), weights[-1].item()) for name, weights in decayed.items()]
    print_table("A weight of 1 after decay", ("", "gradients 0.001", "gradients 10"), ends)
    save(draw(runs, sizes, decayed), options, "regularization")
    return {"runs": runs, "shares": shares, "decayed": decayed}


if __name__ == "__main__":
    main()
