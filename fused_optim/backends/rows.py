"""Rows: one for each parameter, with its gradient and states as one-dimensional columns.

Element ``i`` of every column belongs to element ``i`` of the parameter, whatever the strides.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseKey(NamedTuple):
    """The part of the key of stochastic rounding that differs between rows.

    Attributes:
        param_index: index of the parameter among all parameters of the optimizer.
        element_offset: index of the row's first element in the full, unsharded parameter.
        run: number of consecutive elements there, if the row is a shard of a dim after the first;
            0 if all elements are consecutive.
        stride: distance between the first elements of two runs.
    """

    param_index: int = 0
    element_offset: int = 0
    run: int = 0
    stride: int = 0


class CopyBack(NamedTuple):
    """A column that takes part in the update in place of a tensor, or of some of its rows.

    Attributes:
        tensor: parameter or state that takes the values of the column after the update.
        column: the values, of the shape of the tensor or of its rows.
        rows: int64 [rows] for each of the first dims, the indices of the rows; None for all.
    """

    tensor: Tensor
    column: Tensor
    rows: tuple[Tensor, ...] | None = None

    def run(self) -> None:
        """Copy the values to the tensor."""
        if self.rows is None:
            self.tensor.copy_(self.column)
        else:
            self.tensor[self.rows] = self.column


_NO_NOISE = NoiseKey()  # for rows without stochastic rounding


class Row(NamedTuple):
    """The tensors of one parameter in one step.

    Attributes:
        columns: contiguous tensors of the parameter, the gradient and the states, in the same order
            of elements.
        scalar_state: 0-dim states of the rule, of the same dtype, on the parameter's device.
        group: index of the parameter group.
        noise_key: key of stochastic rounding.
        copies: columns in place of tensors whose strides do not match, or of rows with a sparse
            gradient; after the update each tensor takes the values of its column.
        layout: shape of the parameter, and strides by which the columns hold its elements.
        row_states: states of a step on matrices, one element for each of their rows.
    """

    columns: tuple[Tensor, ...]
    scalar_state: tuple[Tensor, ...]
    group: int
    noise_key: NoiseKey = _NO_NOISE
    copies: tuple[CopyBack, ...] = ()
    layout: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    row_states: tuple[Tensor, ...] = ()


class RowTemplate(NamedTuple):
    """A template that makes a row from a list of tensors.

    Attributes:
        read: function that selects columns, 0-dim states and states of rows from the list.
        columns: number of columns.
        scalars: number of 0-dim states, which follow the columns.
        group: index of the parameter group.
        noise_key: key of stochastic rounding.
        layout: see :class:`Row`.
    """

    read: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    columns: int
    scalars: int
    group: int
    noise_key: NoiseKey
    layout: tuple[tuple[int, ...], tuple[int, ...]]

    def make_row(self, tensors: Sequence[Tensor]) -> Row:
        """Return the row of these tensors, none of which needs a copy."""
        selected = self.read(tensors)
        columns, rest = selected[: self.columns], selected[self.columns :]
        scalar_state, row_states = rest[: self.scalars], rest[self.scalars :]
        row = Row(columns, scalar_state, self.group, self.noise_key, layout=self.layout)
        return row._replace(row_states=row_states)


def is_dense(tensor: Tensor) -> bool:
    """Return True if the elements fill their memory without gaps or overlap, in any dim order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _column(tensor: Tensor, shape: torch.Size, strides: Sequence[int]) -> tuple[Tensor, bool]:
    """Return ``tensor`` in the memory order of ``strides``, and True if it was copied."""
    fits = all(
        n == 1 or stride == expected
        for n, stride, expected in zip(shape, tensor.stride(), strides, strict=True)
    )
    if fits:
        return tensor.as_strided((tensor.numel(),), (1,)), False
    copy = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor).as_strided((tensor.numel(),), (1,)), True


def make_row(
    tensors: Sequence[Tensor],
    scalar_state: tuple[Tensor, ...],
    group: int,
    noise_key: NoiseKey = _NO_NOISE,
    grad: int = 1,
) -> Row:
    """Return a row in which elements of parameter, gradient and states have the same index.

    ``tensors[0]`` is the parameter, ``tensors[grad]`` the gradient. A dense parameter
    (channels_last, transposed) sets the order, and tensors with its strides need no copy. A
    parameter with gaps is updated in a dense copy. Tensors of another shape, the scales of blocks,
    are used unchanged.
    """
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(tensor) for tensor in tensors]
    param = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        layout = (tuple(param.shape), param.stride())
        return Row(tuple(tensors), scalar_state, group, noise_key, layout=layout)
    order = param if is_dense(param) else torch.empty_like(param, device="meta")
    layout = (tuple(param.shape), order.stride())
    columns, copies = [], []
    for i, tensor in enumerate(tensors):
        if tensor.shape != param.shape:
            columns.append(tensor)
            continue
        column, copied = _column(tensor, param.shape, order.stride())
        columns.append(column)
        if copied and i != grad:  # the gradient is only read
            copies.append(CopyBack(tensor, column.as_strided(param.shape, order.stride())))
    return Row(tuple(columns), scalar_state, group, noise_key, tuple(copies), layout)
