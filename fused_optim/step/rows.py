"""Rows: one parameter each, with its gradient and state as one-dimensional columns.

Element ``i`` of every column belongs to element ``i`` of the parameter, whatever the strides.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseKey(NamedTuple):
    """Where the elements of a row stand: what stochastic rounding is keyed by.

    Attributes:
        number: of the parameter among all of the optimizer.
        offset: of the first element in the whole parameter, of which this may be a shard.
    """

    number: int = 0
    offset: int = 0


NOWHERE = NoiseKey()  # for rows without stochastic rounding


class Row(NamedTuple):
    """One parameter of one step.

    Attributes:
        columns: those of the parameter, the gradient and the states, contiguous, in one order of
            elements.
        counters: those of the rule, 0-dim, of one dtype, on the parameter's device.
        group: index of the parameter group.
        place: where the elements stand among all parameters.
        copies: ``(tensor, copy)`` pairs: columns that stand in for tensors whose strides do not
            fit; after the update each tensor takes the values of its copy.
    """

    columns: tuple[Tensor, ...]
    scalar_state: tuple[Tensor, ...]
    group: int
    place: NoiseKey = NOWHERE
    copies: tuple[tuple[Tensor, Tensor], ...] = ()


class RowTemplate(NamedTuple):
    """How to make a row from a list of tensors.

    Attributes:
        read: takes columns and counters from the list.
        columns: how many of these are columns.
        group: see :class:`Row`.
        place: see :class:`Row`.
    """

    read: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    columns: int
    group: int
    place: NoiseKey

    def row(self, tensors: Sequence[Tensor]) -> Row:
        """The row of these tensors, none of which needs a copy."""
        own = self.read(tensors)
        return Row(own[: self.columns], own[self.columns :], self.group, self.place)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in any order of dims."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _column(tensor: Tensor, shape: torch.Size, strides: Sequence[int]) -> tuple[Tensor, bool]:
    """``tensor`` in the memory order of ``strides``, and whether it had to be copied."""
    fits = all(
        n == 1 or mine == other
        for n, mine, other in zip(shape, tensor.stride(), strides, strict=True)
    )
    if fits:
        return tensor.as_strided((tensor.numel(),), (1,)), False
    copy = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor).as_strided((tensor.numel(),), (1,)), True


def make_row(
    tensors: Sequence[Tensor],
    scalar_state: tuple[Tensor, ...],
    group: int,
    place: NoiseKey = NOWHERE,
    grad: int = 1,
) -> Row:
    """Pair the elements of a parameter (first), its gradient (``grad``) and its states.

    A dense parameter (channels_last, transposed) sets the order, and what is laid out as it is
    needs no copy. A parameter with gaps is updated in a dense copy. What is of another shape, the
    scales of blocks, is taken as it is.
    """
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(tensor) for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in tensors):
        return Row(tuple(tensors), scalar_state, group, place)
    param = tensors[0]
    order = param if is_dense(param) else torch.empty_like(param, device="meta")
    columns, copies = [], []
    for i, tensor in enumerate(tensors):
        if tensor.shape != param.shape:
            columns.append(tensor)
            continue
        column, copied = _column(tensor, param.shape, order.stride())
        columns.append(column)
        if copied and i != grad:  # the gradient is only read
            copies.append((tensor, column.as_strided(param.shape, order.stride())))
    return Row(tuple(columns), scalar_state, group, place, tuple(copies))
