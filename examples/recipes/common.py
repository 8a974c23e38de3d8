"""The parts that the recipes share: options, digits, the loop of an epoch, tables and plots."""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from torch import Tensor, nn

OUT = Path("out/recipes")


class Split(NamedTuple):
    """Examples for training and for validation: inputs [n, features], and targets [n]."""

    inputs: Tensor
    targets: Tensor
    held_out_inputs: Tensor
    held_out_targets: Tensor


def start(page: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read ``--out`` and ``--seed``, seed torch, and set it to one thread.

    The nets are too small to gain from more threads, and with one a seed gives the same bits again.
    """
    title = (page or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the plot [{OUT}]")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches [0]")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    return options


def load_digits(held_out: int = 500) -> Split:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels, shuffled, with pixels from -1 to 1."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    return split(torch.tensor(pixels, dtype=torch.float32) / 8 - 1, torch.tensor(labels), held_out)


def split(inputs: Tensor, targets: Tensor, held_out: int) -> Split:
    """Shuffle the examples, always in the same order, and hold out ``held_out`` of them."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    kept, apart = order[held_out:], order[:held_out]
    return Split(inputs[kept], targets[kept], inputs[apart], targets[apart])


def make_net(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers between ``widths``, with an activation after each but the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def iterate_batches(data: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the training examples once, in an order that torch's generator draws."""
    for rows in torch.randperm(len(data.targets)).split(size):
        yield data.inputs[rows], data.targets[rows]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    batch: int = 64,
    after_step: Callable[[], object] = lambda: None,
) -> list[float]:
    """Train a classifier for an epoch, and return the loss of each batch before its step."""
    losses = []
    for inputs, targets in iterate_batches(data, batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        after_step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the cross-entropy, and the share of right answers, in evaluation mode."""
    was_training = model.training
    model.eval()
    scores = model(inputs)
    model.train(was_training)
    loss = nn.functional.cross_entropy(scores, targets).item()
    return loss, (scores.argmax(1) == targets).float().mean().item()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are rounded to three digits and set to the right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def save(figure: Figure, options: argparse.Namespace, name: str) -> Path:
    """Save the figure as ``<name>.png`` in the folder of ``--out``, and print where."""
    options.out.mkdir(parents=True, exist_ok=True)
    path: Path = options.out / f"{name}.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)  # half the bytes
    Console().print(f"plot: {path}", soft_wrap=True, highlight=False)
    return path
