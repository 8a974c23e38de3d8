"""Initialization: ``python -m examples.recipes.initialization``.

Ten hidden layers of 64 units, with tanh or ReLU, and four ways to draw their weights. The plots
have the root mean square of activations and the norm of gradients, by layer, before any step.

- **Zeros**: all hidden units are the same, their activations are 0, and so are all gradients but
  that of the last bias: the net learns only how frequent each digit is. No line in the plots.
- **Unit normal**: the variance grows 64-fold in each layer. ReLU explodes; tanh is bounded, but
  saturated, and the gradients grow toward the first layer.
- **Xavier**, variance ``2 / (fan_in + fan_out)``: keeps the variance through linear layers. With
  tanh, linear near 0, activations shrink slowly and the gradients are the same in all layers. ReLU
  drops the negative half, so that the variance halves in each layer.
- **He**, variance ``2 / fan_in``: makes up for that half, so it keeps the variance with ReLU. With
  tanh it makes up for the slow shrinking, and tanh bounds what is too large.

The table has the loss before training, and on held-out digits after an epoch of our SGD. Adaptive
optimizers hide a part of this, as their step does not depend on the size of the gradient; what they
cannot repair are saturated units and equal ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fused_optim import SGD

from .common import Split, evaluate, load_digits, make_net, print_table, save, start, train_epoch

DEPTH, WIDTH, RATE = 10, 64, 0.01
ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU}
METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": nn.init.zeros_,
    "unit normal": nn.init.normal_,
    "Xavier": nn.init.xavier_normal_,
    "He": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
}


def make_deep_net(activation: str, method: str, seed: int) -> nn.Sequential:
    """Return the net with weights drawn by ``method`` and biases of 0."""
    torch.manual_seed(seed)
    net = make_net(*[WIDTH] * (DEPTH + 1), 10, activation=ACTIVATIONS[activation])
    for layer in net:
        if isinstance(layer, nn.Linear):
            METHODS[method](layer.weight.data)
            nn.init.zeros_(layer.bias)
    return net


def measure(net: nn.Sequential, data: Split) -> tuple[list[float], list[float]]:
    """Return the root mean square of activations, and the norm of gradients, of hidden layers."""
    hidden = data.inputs[:256]
    sizes = []
    for layer in net:
        hidden = layer(hidden)
        if not isinstance(layer, nn.Linear):
            sizes.append(hidden.detach().square().mean().sqrt().item())
    nn.functional.cross_entropy(hidden, data.targets[:256]).backward()
    weights = [layer.weight for layer in net if isinstance(layer, nn.Linear)]
    norms = [weight.grad.norm().item() for weight in weights if weight.grad is not None]
    return sizes, norms[:DEPTH]


def run(activation: str, method: str, data: Split, seed: int) -> dict[str, Any]:
    """Measure the net, and train it for an epoch."""
    net = make_deep_net(activation, method, seed)
    sizes, norms = measure(net, data)
    before = evaluate(net, data.held_out_inputs, data.held_out_targets)[0]
    train_epoch(net, SGD(net.parameters(), lr=RATE, momentum=0.9), data, batch=16)
    after, right = evaluate(net, data.held_out_inputs, data.held_out_targets)
    return {"sizes": sizes, "norms": norms, "before": before, "after": after, "right": right}


def draw(results: dict[tuple[str, str], dict[str, Any]]) -> Figure:
    """Draw the sizes of activations and gradients by layer, for both activations."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    for row, key in zip(figure.subplots(2, 2), ("sizes", "norms"), strict=True):
        for axes, activation in zip(row, ACTIVATIONS, strict=True):
            for i, method in enumerate(METHODS):
                values = [value or float("nan") for value in results[activation, method][key]]
                label = f"{method} (all 0)" if method == "zeros" else method
                axes.plot(range(1, DEPTH + 1), values, "o-", ms=4, color=f"C{i}", label=label)
            what = "activations" if key == "sizes" else "gradients"
            axes.set(title=f"{what}, {activation}", yscale="log", xlabel="hidden layer")
            axes.set(ylabel="root mean square" if key == "sizes" else "norm")
            if (key, activation) == ("sizes", "tanh"):
                axes.set_ylim(0.01, 2)
            axes.grid(alpha=0.3)
            axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Run every activation with every method; return what was measured."""
    options = start(__doc__, argv)
    data = load_digits()
    results = {
        (activation, method): run(activation, method, data, options.seed)
        for activation in ACTIVATIONS
        for method in METHODS
    }
    rows = [
        (" ".join(names), r["sizes"][-1], r["norms"][0], r["before"], r["after"], r["right"])
        for names, r in results.items()
    ]
    columns = ("", "last activation", "first gradient", "loss before", "after an epoch", "right")
    print_table("Initialization of ten layers", columns, rows)
    save(draw(results), options, "initialization")
    return results


if __name__ == "__main__":
    main()
