"""Sums over many elements that neither the processor nor the number of threads changes.

``Tensor.sum`` adds in an order that the width of the vectors and the number of threads decide. Here
the place of an element decides: it is added to one of ``WIDTH`` accumulators, and these are added
by halves. Every addition is elementwise, so it rounds once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fused_optim.private_api import has_data

WIDTH = 1 << 16  # accumulators, which stay in cache


class Sum:
    """The sum over elements that arrive in pieces.

    Element ``i`` of a piece is added to accumulator ``i % WIDTH``, so that pieces of any multiple
    of ``WIDTH`` elements give the same sum.

    Attributes:
        accumulators: float64 [min(numel, WIDTH)], at least one.
    """

    def __init__(self, numel: int, device: torch.device) -> None:
        """``numel``: no piece has more elements."""
        size = max(1, min(numel, WIDTH))
        self.accumulators = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Add a piece, float64 [n]."""
        if not has_data(values):
            return  # nothing to add, and it may be larger than any memory
        for part in torch.split(values, WIDTH) if len(values) > WIDTH else (values,):
            self.accumulators[: len(part)].add_(part)

    def total(self) -> Tensor:
        """The sum so far, float64 []. What is added later is added to an undefined value."""
        return _halved(self.accumulators)


def total(values: Tensor) -> Tensor:
    """The sum over the first dimension of ``values``, float64 [n, ...] with n >= 1."""
    return _halved(values.clone())


def _halved(values: Tensor) -> Tensor:
    """The sum over the first dimension of ``values``, which are overwritten."""
    # a call of numpy takes a fraction of the time that one of torch does
    rest: Any = values.numpy() if values.device.type == "cpu" and has_data(values) else values
    with np.errstate(over="ignore", invalid="ignore"):
        while len(rest) > 1:
            half = -(-len(rest) // 2)
            rest[: len(rest) - half] += rest[half:]
            rest = rest[:half]
    return values[0]
