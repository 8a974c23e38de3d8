"""The matrices of a workspace in batches, and their transform."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_optim.matrix.blocks import Cut, find_blocks
from fused_optim.rules.common import MatrixStep

Pair = tuple[int, int]
ALIGNMENT = 16  # in elements: rows of the workspace begin where every kernel may read 16 bytes
MAX_PADDED_NUMEL = 128 * 128  # larger matrices are not padded
MAX_PADDING = 1.5  # ratio of the columns of matrices that are padded to one shape


class Batch(NamedTuple):
    """The matrices of one shape in a workspace.

    Attributes:
        shape: numbers of rows and columns.
        strides: distances between the elements of two rows, and of two columns.
        places: for each matrix, the index of its first element, that of its parameter, and the
            index of its first row among the rows of all matrices of the parameter.
    """

    shape: tuple[int, int]
    strides: tuple[int, int]
    places: list[tuple[int, int, int]]

    def divide(self, size: int | None) -> Iterator["Batch"]:
        """Yield batches of at most ``size`` matrices."""
        places = iter(self.places)
        while part := list(islice(places, size)):
            yield self._replace(places=part)

    def views(self, workspace: Tensor) -> list[Tensor]:
        """Return one view of all matrices, [k, m, n]; one of each if they are not evenly spaced."""
        offsets = [offset for offset, _, _ in self.places]
        distances = {b - a for a, b in pairwise(offsets)}
        if len(distances) < 2:
            step = distances.pop() if distances else 0
            shape, strides = (len(offsets), *self.shape), (step, *self.strides)
            return [workspace.as_strided(shape, strides, offsets[0])]
        return [workspace.as_strided(self.shape, self.strides, offset) for offset in offsets]

    def each(self, workspace: Tensor) -> list[Tensor]:
        """Return a view of every matrix with its shorter dim first, [m, n]."""
        views = [workspace.as_strided(self.shape, self.strides, place[0]) for place in self.places]
        rows, columns = self.shape
        return [view.mT for view in views] if rows > columns else views

    def rows(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return the part [rows, 1] of a state that belongs to each matrix.

        Args:
            states: the state of each parameter.
        """
        count = self.shape[0]
        return [states[i].view(-1, 1)[first : first + count] for _, i, first in self.places]


def group_ragged(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Return the batches that are transformed at once: small matrices of similar shapes together.

    On the CPU the products of matrices below 128 x 128 take less time than the calls.
    """
    groups: list[list[Batch]] = []
    for batch in sorted(batches, key=lambda batch: (min(batch.shape), max(batch.shape))):
        last = groups[-1][0].shape if groups else (0, 0)
        fits = min(batch.shape) == min(last) and max(batch.shape) <= MAX_PADDING * max(last)
        if fits and math.prod(batch.shape) <= MAX_PADDED_NUMEL:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return groups


class Layout:
    """The places of all directions of a bucket in one workspace.

    Attributes:
        offsets: index of the first element of each row.
        numel: number of elements of the workspace.
        batches: matrices by shape; those of several shapes are padded to one.
    """

    def __init__(self, layouts: Sequence[Any], numels: Sequence[int], cut: Cut | None) -> None:
        """Place the directions.

        Args:
            layouts: shape and strides of each row.
            numels: number of elements of each row.
            cut: division into matrices; None for parts of matrices, which make no batches.
        """
        self.offsets = [0] * len(layouts)
        self.numel = 0
        batches: dict[tuple[Pair, Pair], list[tuple[int, int, int]]] = {}
        # rows of one layout are neighbours, so that their matrices are evenly spaced
        for i in sorted(range(len(layouts)), key=lambda i: layouts[i]):
            self.offsets[i] = self.numel
            if numels[i] and cut is not None:
                first = 0
                shape, strides = layouts[i]
                for block in find_blocks(shape, strides, cut):
                    places = batches.setdefault((block.shape, block.strides), [])
                    places.append((self.numel + block.offset, i, first))
                    first += block.shape[0]
            self.numel += -(-numels[i] // ALIGNMENT) * ALIGNMENT
        found = [Batch(shape, strides, places) for (shape, strides), places in batches.items()]
        self.batches = group_ragged(found)


def count_workspace(
    layouts: Sequence[Any], numels: Sequence[int], step: MatrixStep, dtype: torch.dtype
) -> int:
    """Return the bytes of the temporary tensors of a bucket: directions, and the largest batch.

    For each matrix m x n, m <= n, of a batch, normalization in float64 takes up to 10 bytes an
    element, and then the products two tensors m x n and four m x m: bounds for both iterations.

    Args:
        layouts: shape and strides of each parameter.
        numels: number of elements of each parameter.
        step: operation on the matrices.
        dtype: dtype of the directions.
    """
    layout = Layout(layouts, numels, step.cut)
    largest = 0
    for group in layout.batches:
        shapes = [batch.shape for batch in group]
        rows, columns = min(map(min, shapes)), max(map(max, shapes))
        count = sum(len(batch.places) for batch in group)
        if step.settings.max_batch is not None:
            count = min(count, step.settings.max_batch)
        products = rows * (2 * columns + 4 * rows) * dtype.itemsize
        largest = max(largest, count * max(10 * rows * columns, products))
    return layout.numel * dtype.itemsize + largest


def transform_batches(
    workspace: Tensor,
    batches: Sequence[list[Batch]],
    step: MatrixStep,
    states: Sequence[Sequence[Tensor]] = (),
    skips: Sequence[Tensor | None] = (),
) -> None:
    """Replace each matrix in ``workspace`` by its transform.

    Args:
        workspace: directions.
        batches: places of the matrices, as :class:`Layout` has them.
        step: operation on them.
        states: each state of the operation, for each parameter; updated in place.
        skips: for each parameter, a 0-dim tensor that is True if its states stay, or None.
    """
    with _without_autocast(workspace.device):
        for group in batches:
            if len(group) > 1 and step.factor is not None:
                _transform_padded(workspace, group, step, step.factor)
                continue
            for batch in group:
                for part in batch.divide(step.settings.max_batch):
                    _transform(workspace, part, step, states, skips)


def _transform(
    workspace: Tensor,
    batch: Batch,
    step: MatrixStep,
    states: Sequence[Sequence[Tensor]],
    skips: Sequence[Tensor | None],
) -> None:
    """Replace the matrices of one batch by their transforms."""
    views = batch.views(workspace)
    given = views[0] if views[0].dim() == 3 else torch.stack(views)
    old = [batch.rows(state) for state in states]
    result, new = step.transform(given, tuple(map(torch.stack, old)), step.settings)
    factor = 1.0 if step.factor is None else step.factor(*batch.shape, step.settings)
    for view, value in zip(views, [result] if views[0].dim() == 3 else result, strict=True):
        torch.mul(value, factor, out=view)
    for before, after in zip(old, new, strict=True):
        for (_, i, _), row, value in zip(batch.places, before, after, strict=True):
            skip = skips[i]
            row.copy_(value if skip is None else torch.where(skip, row, value))


def _transform_padded(
    workspace: Tensor, group: list[Batch], step: MatrixStep, factor: Callable[..., float]
) -> None:
    """Replace matrices of several shapes by their transforms, with columns of zeros added."""
    pairs = [
        (view, factor(*batch.shape, step.settings))
        for batch in group
        for view in batch.each(workspace)
    ]
    rows, columns = min(group[0].shape), max(max(batch.shape) for batch in group)
    given = iter(pairs)
    while part := list(islice(given, step.settings.max_batch)):
        padded = workspace.new_zeros(len(part), rows, columns)
        for matrix, (view, _) in zip(padded, part, strict=True):
            matrix[:, : view.shape[1]].copy_(view)
        result, _ = step.transform(padded, (), step.settings)
        for matrix, (view, scale) in zip(result, part, strict=True):
            torch.mul(matrix[:, : view.shape[1]], scale, out=view)


def _without_autocast(device: torch.device) -> Any:
    """Return a context in which autocast does not change the dtype of products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
