"""The division of a parameter into matrices, each of which a rule transforms on its own."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Cut(NamedTuple):
    """The division of a parameter into matrices.

    Attributes:
        batch_dims: number of dims before those of a matrix; the next dim is the rows, and all dims
            after it together are the columns. None for a parameter of two dims.
        split: numbers of rows of the matrices that are stacked in the rows, such as query, key and
            value of a fused projection; () for one matrix.
        heads: number of matrices of equal size into which the rows of each are divided.
    """

    batch_dims: int | None = None
    split: tuple[int, ...] = ()
    heads: int = 1


class Block(NamedTuple):
    """One matrix in the memory of a parameter.

    Attributes:
        offset: index of its first element.
        shape: numbers of rows and columns.
        strides: distances between the elements of two rows, and of two columns.
    """

    offset: int
    shape: tuple[int, int]
    strides: tuple[int, int]


def describe_misfit(shape: Sequence[int], cut: Cut) -> str | None:
    """Return the requirement that a shape fails, worded to follow "must"; None for none."""
    dims = len(shape)
    if dims < 2:
        return f"have two dims or more, got shape {tuple(shape)}"
    if cut.batch_dims is None and dims > 2:
        return (
            f"have two dims, got shape {tuple(shape)}: pass batch_dims=0 to flatten the dims after "
            "the first, as for a convolution, or batch_dims=1 for a stack of matrices, as for "
            "experts"
        )
    batch_dims = cut.batch_dims or 0
    if batch_dims > dims - 2:
        return f"have at least {batch_dims + 2} dims for batch_dims={batch_dims}, got {dims}"
    rows = shape[batch_dims]
    if cut.split and sum(cut.split) != rows:
        return f"have {sum(cut.split)} rows for split={cut.split}, got {rows}"
    for part in cut.split or (rows,):
        if part % cut.heads:
            return f"have a number of rows that heads={cut.heads} divides, got {part}"
    return None


def find_blocks(shape: Sequence[int], strides: Sequence[int], cut: Cut) -> list[Block]:
    """Return the matrices of a parameter, in the order of batch, split and heads.

    Args:
        shape: shape of the parameter.
        strides: strides of its elements in memory.
        cut: division into matrices.

    Raises:
        ValueError: the shape does not fit ``cut``, or the columns are not evenly spaced in memory.
    """
    misfit = describe_misfit(shape, cut)
    if misfit is not None:
        raise ValueError(f"a parameter of Muon must {misfit}")
    first = cut.batch_dims or 0
    columns, column_stride = _merge(shape[first + 1 :], strides[first + 1 :])
    row_stride = strides[first]
    parts = [n // cut.heads for n in cut.split or (shape[first],) for _ in range(cut.heads)]
    blocks = []
    for start in _offsets(shape[:first], strides[:first]):
        for rows in parts:
            blocks.append(Block(start, (rows, columns), (row_stride, column_stride)))
            start += rows * row_stride
    return blocks


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the offset of every index of ``shape``, in order."""
    offsets = [0]
    for size, stride in zip(shape, strides, strict=True):
        offsets = [offset + i * stride for offset in offsets for i in range(size)]
    return offsets


def _merge(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Return size and stride of dims as one, in the order of memory.

    A permutation of the columns of a matrix permutes those of its polar factor.
    """
    dims = sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1)
    step = dims[0][0] if dims else 1
    expected = step
    for stride, size in dims:
        if stride != expected:
            raise ValueError(
                f"a parameter of Muon must have evenly spaced columns, got dims {tuple(shape)} of "
                f"strides {tuple(strides)}: make it contiguous"
            )
        expected *= size
    return math.prod(shape), step
