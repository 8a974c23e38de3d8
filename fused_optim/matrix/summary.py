"""How a parameter is divided into matrices, as a table for people."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fused_optim.matrix.blocks import Cut, find_blocks
from fused_optim.matrix.newton_schulz import lr_factor


class Matrices(NamedTuple):
    """Matrices of one shape in a parameter.

    Attributes:
        number: how many there are.
        rows: number of rows of each.
        columns: number of columns of each.
        lr_factor: factor of the learning rate of each.
    """

    number: int
    rows: int
    columns: int
    lr_factor: float

    def __str__(self) -> str:
        many = f"{self.number} of " if self.number > 1 else ""
        return f"{many}{self.rows} x {self.columns}: lr x {self.lr_factor:.4g}"


def list_matrices(shape: Sequence[int], cut: Cut, adjust_lr: str) -> tuple[Matrices, ...]:
    """Return the matrices of a parameter, those of equal shape together.

    Args:
        shape: shape of the parameter.
        cut: division into matrices.
        adjust_lr: factor of the learning rate by shape, as :func:`lr_factor` takes it.

    Raises:
        ValueError: the shape does not fit ``cut``.
    """
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]  # of a contiguous tensor
    counts = Counter(block.shape for block in find_blocks(shape, strides, cut))
    return tuple(
        Matrices(number, rows, columns, lr_factor(rows, columns, adjust_lr))
        for (rows, columns), number in counts.items()
    )


def describe_matrices(matrices: Sequence[Matrices]) -> str:
    """Return the matrices of a parameter as text."""
    return "; ".join(map(str, matrices))
