"""Flat buffers, into which small tensors are copied: each torch operation has a fixed cost."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fused_optim.private_api import copy_all

SIZE = 1 << 15  # maximum number of elements that are packed into a buffer
MAX_NUMEL = SIZE // 4  # rows of fewer elements are packed
Columns = tuple[Tensor, ...]
Dtypes = tuple[torch.dtype, ...]
Key = tuple[Dtypes, tuple[torch.Size, ...]]


class FlatBuffer:
    """Contiguous copies of several small rows, which are updated together.

    Attributes:
        columns: 1-d tensors, the concatenated columns of the rows.
        parts: for each column, a view of the elements of each row in the shape of the row.
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
        """Copy the rows in; return a function that copies all but ``read_only`` columns back."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        for parts, column in zip(self.parts, columns, strict=True):
            copy_all(parts, column)

        def restore() -> None:
            for i, (parts, column) in enumerate(zip(self.parts, columns, strict=True)):
                if i not in read_only:
                    copy_all(column, parts)

        return restore


class FlatBufferPool:
    """The flat buffers of a bucket, which share the same memory: one is filled at a time.

    Making the views takes longer than copying, so buffers are reused in the next step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory: dict[Dtypes, list[Tensor]] = {}
        self.last_step: dict[Key, FlatBuffer] = {}
        self.this_step: dict[Key, FlatBuffer] = {}

    def start_step(self) -> None:
        """Start a step; delete buffers that the last step did not use."""
        self.last_step, self.this_step = self.this_step, {}

    def get(self, rows: Sequence[Columns]) -> FlatBuffer:
        """Return a buffer for ``rows``: contiguous, on one device, of the same dtypes."""
        dtypes = tuple(column.dtype for column in rows[0])
        key = dtypes, tuple(row[0].shape for row in rows)
        buffer = self.this_step.get(key) or self.last_step.get(key)
        if buffer is None:
            numel = sum(shape.numel() for shape in key[1])
            buffer = FlatBuffer(self._allocate(dtypes, numel), key[1])
        self.this_step[key] = buffer
        return buffer

    def _allocate(self, dtypes: Dtypes, numel: int) -> list[Tensor]:
        """Return columns of at least ``numel`` elements."""
        columns = self.memory.get(dtypes)
        if columns is None or len(columns[0]) < numel:
            size = max(numel, SIZE)
            columns = [torch.empty(size, dtype=dtype, device=self.device) for dtype in dtypes]
            self.memory[dtypes] = columns
        return columns
