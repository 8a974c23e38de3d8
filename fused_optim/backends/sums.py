"""Sums over many elements with a fixed order of additions.

The order of ``Tensor.sum`` depends on the width of vector registers and the number of threads. Here
it depends on the index of an element alone: an element is added to one of ``WIDTH`` accumulators,
and these are summed pairwise. Every addition is elementwise, so it rounds once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fused_optim.private_api import has_data

WIDTH = 1 << 16  # number of accumulators, which fit in the cache


class Sum:
    """A sum over elements that are added in pieces.

    Element ``i`` of a piece is added to accumulator ``i % WIDTH``, so that pieces of any multiple
    of ``WIDTH`` elements give the same sum.

    Attributes:
        accumulators: partial sums, float64 [max(1, min(numel, WIDTH))].
    """

    def __init__(self, numel: int, device: torch.device) -> None:
        """Start at zero; ``numel`` is the maximum number of elements of a piece."""
        size = max(1, min(numel, WIDTH))
        self.accumulators = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Add a piece, float64 [n]."""
        if not has_data(values):
            return  # it has no values, and may be larger than the memory
        for part in torch.split(values, WIDTH) if len(values) > WIDTH else (values,):
            self.accumulators[: len(part)].add_(part)

    def total(self) -> Tensor:
        """Return the sum, float64 []. It overwrites the accumulators: add no piece afterwards."""
        return _halved(self.accumulators)


def total(values: Tensor) -> Tensor:
    """Return the sum over the first dimension of ``values``, float64 [n, ...] with n >= 1."""
    return _halved(values.clone())


def _halved(values: Tensor) -> Tensor:
    """Return the sum over the first dimension of ``values``, and overwrite ``values``."""
    # a call of numpy has less overhead than one of torch
    rest: Any = values.numpy() if values.device.type == "cpu" and has_data(values) else values
    with np.errstate(over="ignore", invalid="ignore"):
        while len(rest) > 1:
            half = -(-len(rest) // 2)
            rest[: len(rest) - half] += rest[half:]
            rest = rest[:half]
    return values[0]
