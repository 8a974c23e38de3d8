"""Small rows as one: an operation of torch takes longer than the elements of a small tensor do."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fused_optim.private_api import copy_all

SIZE = 1 << 15  # elements that are packed into one
SMALL = SIZE // 4  # elements: rows of fewer are packed
Columns = tuple[Tensor, ...]
Dtypes = tuple[torch.dtype, ...]
Key = tuple[Dtypes, tuple[torch.Size, ...]]


class FlatBuffer:
    """A place for every element of some small rows, which are to be updated as one.

    Attributes:
        columns: 1-d; the rows one after the other.
        parts: for each column, the part of each row, of its shape.
    """

    def __init__(self, columns: Sequence[Tensor], shapes: Sequence[torch.Size]) -> None:
        ends = [0]
        for shape in shapes:
            ends.append(ends[-1] + shape.numel())
        spans = [slice(*span) for span in pairwise(ends)]
        self.columns = tuple(column[: ends[-1]] for column in columns)
        self.parts = [
            [column[span].view(shape) for span, shape in zip(spans, shapes, strict=True)]
            for column in columns
        ]

    def fill(self, rows: Sequence[Columns], read_only: range = range(0)) -> Callable[[], None]:
        """Copy the rows; what is returned copies them back, but for columns in ``read_only``."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        for parts, column in zip(self.parts, columns, strict=True):
            copy_all(parts, column)

        def restore() -> None:
            for i, (parts, column) in enumerate(zip(self.parts, columns, strict=True)):
                if i not in read_only:
                    copy_all(column, parts)

        return restore


class FlatBufferPool:
    """The packs of a launch. One is filled at a time: all are places in the same memory.

    To make views takes longer than to copy, so they are kept from step to step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory: dict[Dtypes, list[Tensor]] = {}
        self.last: dict[Key, FlatBuffer] = {}
        self.packs: dict[Key, FlatBuffer] = {}

    def begin(self) -> None:
        """A step begins: packs that the last one had no use for are dropped."""
        self.last, self.packs = self.packs, {}

    def pack(self, rows: Sequence[Columns]) -> FlatBuffer:
        """A pack for ``rows``, which are contiguous, on one device, and of the same dtypes."""
        dtypes = tuple(column.dtype for column in rows[0])
        key = dtypes, tuple(row[0].shape for row in rows)
        found = self.packs.get(key) or self.last.get(key)
        if found is None:
            found = FlatBuffer(self._memory(dtypes, sum(shape.numel() for shape in key[1])), key[1])
        self.packs[key] = found
        return found

    def _memory(self, dtypes: Dtypes, numel: int) -> list[Tensor]:
        """Columns of at least ``numel`` elements."""
        found = self.memory.get(dtypes)
        if found is None or len(found[0]) < numel:
            size = max(numel, SIZE)
            found = [torch.empty(size, dtype=dtype, device=self.device) for dtype in dtypes]
            self.memory[dtypes] = found
        return found
