"""A small model of the next byte, which these examples train on a source file of Python."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

CONTEXT = 16


class ByteModel(nn.Module):
    """A perceptron with one hidden layer that predicts a byte from the 16 bytes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.hidden = nn.Linear(CONTEXT * 32, 128)
        self.output = nn.Linear(128, 256)

    def forward(self, context: Tensor) -> Tensor:
        """Return the logits of the next byte, [batch, 256], for integers [batch, 16]."""
        return self.output(torch.tanh(self.hidden(self.embedding(context).flatten(1))))


def make_model() -> ByteModel:
    """Return a model that is the same each time."""
    torch.manual_seed(0)
    return ByteModel()


def load_blocks(count: int, length: int = CONTEXT + 1) -> Tensor:
    """Return the first ``count`` blocks of ``length`` bytes of argparse.py as integers."""
    text = bytearray(Path(argparse.__file__).read_bytes()[: count * length])
    return torch.frombuffer(text, dtype=torch.uint8).view(count, length).long()


def form_loss(model: nn.Module, blocks: Tensor) -> Tensor:
    """Return the mean cross entropy of the last byte of each block, given those before it."""
    return nn.functional.cross_entropy(model(blocks[:, :-1]), blocks[:, -1])


def are_close(ours: Iterable[Tensor], theirs: Iterable[Tensor], bound: float = 1e-5) -> bool:
    """Return True if no element differs by more than ``bound``."""
    return all(bool((p - q).abs().max() <= bound) for p, q in zip(ours, theirs, strict=True))


def are_equal(first: nn.Module, second: nn.Module) -> bool:
    """Return True if all parameters of two models have the same bits."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)
