"""Matrices that ranks share: each is sent to one rank, transformed there whole, and sent back.

The ranks of a process group exchange all of their parts at once, in one collective each way, whose
sizes follow from shapes; the states of rows go with them. Every rank takes part for every parameter
of the optimizer, also for one that has no gradient, in the order of the parameters, so that no rank
waits for another for ever.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_optim.backends.matrix_batches import Layout, transform_batches
from fused_optim.backends.matrix_runner import Direction, direction_dtype
from fused_optim.dtensors import (
    MatrixSharding,
    find_matrix_mesh_dims,
    find_matrix_sharding,
    to_local,
)
from fused_optim.private_api import copy_all, has_data
from fused_optim.rules.common import MatrixStep, Rule
from fused_optim.step.guards import Group

ALIGNMENT = 16  # in bytes: parts of every dtype begin where it can be viewed


class SharedParam(NamedTuple):
    """A parameter whose matrices ranks share.

    Attributes:
        param_index: index of the parameter in the optimizer.
        number: index of the parameter in the whole model.
        sharding: how ranks share it.
        step: operation on its matrices.
        dtype: dtype of its direction.
        device: device of its local tensor.
    """

    param_index: int
    number: int
    sharding: MatrixSharding
    step: MatrixStep
    dtype: torch.dtype
    device: torch.device

    def list_parts(self, rank: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of what ``rank`` has: a part of the direction, of each state."""
        shape = list(self.sharding.shape)
        shape[self.sharding.dim] = self.sharding.spans[rank][1]
        states = [(self.step.row_shape(shape), torch.float32)] * len(self.step.row_states)
        return [(tuple(shape), self.dtype), *states]


def make_layout(params: Sequence[SharedParam]) -> Layout:
    """Return the places of the whole matrices of parameters with one step."""
    shapes = [param.sharding.shape for param in params]
    layouts = [(shape, contiguous_strides(shape)) for shape in shapes]
    return Layout(layouts, [math.prod(shape) for shape in shapes], params[0].step.cut)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def is_exchanged(param: Tensor, rule: Rule) -> bool:
    """Return True if ranks share the matrices of ``param`` that ``rule`` transforms."""
    step = rule.matrix_step
    return step is not None and bool(find_matrix_mesh_dims(param, step.cut.batch_dims or 0))


def find_shared(
    groups: Iterable[Group],
    rule: Callable[[Group], Rule],
    numbers: Mapping[Tensor, int],
    elsewhere: Collection[Tensor],
) -> Iterator[SharedParam]:
    """Yield the parameters whose matrices ranks share, with or without a gradient.

    Args:
        groups: parameter groups of an optimizer.
        rule: function that returns the rule of a group.
        numbers: index of parameters in the whole model, where it is not that in the optimizer.
        elsewhere: parameters that are updated here only if they have a gradient.
    """
    indices = itertools.count()
    for group in groups:
        own_rule = rule(group)
        for param in group["params"]:
            index = next(indices)
            idle = param.grad is None and (param in elsewhere or not param.requires_grad)
            step = own_rule.matrix_step
            if idle or step is None or not is_exchanged(param, own_rule):
                continue
            sharding = find_matrix_sharding(param, step.cut.batch_dims or 0)
            assert sharding is not None
            device = to_local(param).device
            dtype = direction_dtype(step, device)
            yield SharedParam(index, numbers.get(param, index), sharding, step, dtype, device)


def choose_owners(params: Sequence[SharedParam], size: int) -> list[int]:
    """Return the rank that transforms each parameter; the costliest are distributed first.

    Of ranks with equal work, the number of the parameter selects one.
    """
    costs = [
        sum(
            len(batch.places) * math.prod(batch.shape) * min(batch.shape)
            for group in make_layout([param]).batches
            for batch in group
        )
        for param in params
    ]
    work, owners = [0] * size, [0] * len(params)
    for i in sorted(range(len(params)), key=lambda i: -costs[i]):
        first = params[i].number
        owners[i] = min(range(size), key=lambda rank: (work[rank], (rank - first) % size))
        work[owners[i]] += costs[i]
    return owners


def group_alike(params: Iterable[SharedParam]) -> dict[Any, list[SharedParam]]:
    """Return the parameters by step and dtype, in the order in which these are met first."""
    alike: dict[Any, list[SharedParam]] = {}
    for param in params:
        alike.setdefault((param.step, param.dtype), []).append(param)
    return alike


class Part(NamedTuple):
    """One rank's part of a parameter, in a buffer.

    Attributes:
        offset: index of its first byte.
        shape: shape of the part.
        dtype: dtype of the part.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: Tensor) -> Tensor:
        """Return the part as a view of ``buffer``."""
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.offset : self.offset + nbytes].view(self.dtype).view(self.shape)


class Buffer:
    """The places of parts in a buffer of bytes, by the rank that they are sent to or come from.

    Attributes:
        parts: parts in the order of ranks.
        sizes: number of bytes for each rank.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.sizes: list[int] = []

    def add_rank(self, parts: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Add the parts of the next rank, as shapes and dtypes."""
        begin = end = sum(self.sizes)
        for shape, dtype in parts:
            self.parts.append(Part(end, shape, dtype))
            end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.sizes.append(end - begin)

    def allocate(self, device: torch.device) -> Tensor:
        """Return memory for the parts."""
        return torch.empty(sum(self.sizes), dtype=torch.uint8, device=device)

    def views(self, memory: Tensor) -> list[Tensor]:
        """Return every part as a view of ``memory``."""
        return [part.view(memory) for part in self.parts]


class WholeMatrices:
    """The matrices of parameters with one step and dtype that this rank transforms, in memory.

    Attributes:
        params: the parameters.
        layout: places of their matrices.
        memory: directions.
        states: each state of rows, for each parameter: ``[copies, ..., rows, 1]``. Ranks that share
            the rows have one copy together; ranks that share the columns have one each.
    """

    def __init__(self, params: Sequence[SharedParam], layout: Layout, size: int) -> None:
        first, names = params[0], params[0].step.row_states
        self.params, self.layout = params, layout
        self.memory = torch.empty(layout.numel, dtype=first.dtype, device=first.device)
        self.states = [[_allocate_rows(param, size) for param in params] for _ in names]

    def views(self, rank: int) -> Iterator[Tensor]:
        """Yield what ``rank`` has of each parameter: see :meth:`SharedParam.list_parts`."""
        for i, (param, offset) in enumerate(zip(self.params, self.layout.offsets, strict=True)):
            shape, span = param.sharding.shape, param.sharding.spans[rank]
            whole = self.memory.as_strided(shape, contiguous_strides(shape), offset)
            yield whole.narrow(param.sharding.dim, *span)
            for state in self.states:
                if _shares_rows(param):
                    yield state[i][0].narrow(param.sharding.dim, *span)
                else:
                    yield state[i][rank]

    def transform(self) -> None:
        """Replace the matrices by their transforms, and advance the states of rows."""
        # the copies of a state are equal, except 0 on a rank that has had no gradient so far
        states = [[copies.amax(0) for copies in state] for state in self.states]
        skips = [None] * len(self.params)  # each rank keeps the states of a step that it skips
        transform_batches(self.memory, self.layout.batches, self.params[0].step, states, skips)
        for copies, new in zip(self.states, states, strict=True):
            _copy(copies, [value.expand_as(c) for value, c in zip(new, copies, strict=True)])


def _allocate_rows(param: SharedParam, size: int) -> Tensor:
    """Return memory for the copies of a state of rows: see :class:`WholeMatrices`."""
    shape = param.step.row_shape(param.sharding.shape)
    copies = 1 if _shares_rows(param) else size
    return torch.empty((copies, *shape), dtype=torch.float32, device=param.device)


def _shares_rows(param: SharedParam) -> bool:
    """Return True if ranks share the rows of matrices, not the columns."""
    return param.sharding.dim < param.step.row_dims


class GroupExchange:
    """The exchange of the ranks of one process group.

    Attributes:
        group: process group.
        params: parameters whose parts this rank sends, in the order of the buffer.
    """

    def __init__(self, params: Sequence[SharedParam]) -> None:
        self.group, self.device = params[0].sharding.group, params[0].device
        rank = torch.distributed.get_rank(self.group)
        self.size = torch.distributed.get_world_size(self.group)
        owned: list[list[SharedParam]] = [[] for _ in range(self.size)]
        for param, owner in zip(params, choose_owners(params, self.size), strict=True):
            owned[owner].append(param)
        # those with one step are neighbours in the buffers too
        kinds = [list(group_alike(own).values()) for own in owned]
        self._owned = [(same, make_layout(same)) for same in kinds[rank]]
        owned = [list(itertools.chain.from_iterable(own)) for own in kinds]
        self.params = list(itertools.chain.from_iterable(owned))
        self._sent, self._received = Buffer(), Buffer()
        for own in owned:
            self._sent.add_rank(part for param in own for part in param.list_parts(rank))
        for source in range(self.size):
            parts = (part for param in owned[rank] for part in param.list_parts(source))
            self._received.add_rank(parts)

    def run(self, directions: Mapping[int, Direction]) -> None:
        """Replace directions by their transforms, and advance the states of rows.

        Args:
            directions: direction of each parameter that has one on this rank, by index; the others
                and their states are 0 for the transform.
        """
        sent, received = (b.allocate(self.device) for b in (self._sent, self._received))
        own = self._match_parts(directions, self._sent.views(sent))
        _copy([part for _, part, _ in own], [tensor for tensor, _, _ in own])
        sizes = (self._received.sizes, self._sent.sizes)
        torch.distributed.all_to_all_single(received, sent, *sizes, group=self.group)
        self._transform(received)
        torch.distributed.all_to_all_single(sent, received, *sizes[::-1], group=self.group)
        new = [p if skip is None else torch.where(skip, tensor, p) for tensor, p, skip in own]
        _copy([tensor for tensor, _, _ in own], new)

    def _match_parts(
        self, directions: Mapping[int, Direction], parts: Iterable[Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return each tensor of this rank with its part of the buffer; set the other parts to 0.

        The third is a 0-dim tensor that is True if the tensor stays, or None.
        """
        unmatched, matched = iter(parts), []
        for param in self.params:
            views = list(itertools.islice(unmatched, 1 + len(param.step.row_states)))
            direction = directions.get(param.param_index)
            if direction is None:
                for view in views:
                    view.zero_()
                continue
            values, row_states, skip = direction
            tensors = [(values, None), *((state, skip) for state in row_states)]
            matched += [(t, view, stays) for (t, stays), view in zip(tensors, views, strict=True)]
        return matched

    def _transform(self, received: Tensor) -> None:
        """Replace the parts of this rank's parameters by those of their transforms."""
        wholes = [WholeMatrices(*same, self.size) for same in self._owned]
        views = [view for r in range(self.size) for whole in wholes for view in whole.views(r)]
        parts = self._received.views(received)
        _copy(views, parts)
        for whole in wholes:
            whole.transform()
        _copy(parts, views)


def _copy(destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each tensor that has elements."""
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for destination, source in zip(destinations, sources, strict=True):
        if destination.numel():
            pairs.setdefault(destination.dtype, []).append((destination, source))
    for same in pairs.values():  # tensors of several dtypes would be copied one by one
        copy_all([d for d, _ in same], [s for _, s in same])


class MatrixExchange:
    """The exchanges of a step, over every process group whose ranks share matrices; maybe none."""

    def __init__(self, params: Iterable[SharedParam]) -> None:
        by_group: dict[tuple[str, str], list[SharedParam]] = {}
        for param in params:
            key = (param.sharding.group.group_name, param.device.type)
            by_group.setdefault(key, []).append(param)
        # in an order that all ranks have
        self._exchanges = [GroupExchange(by_group[key]) for key in sorted(by_group)]

    def run(self, directions: Mapping[int, Direction]) -> None:
        """Replace directions by their transforms: see :meth:`GroupExchange.run`."""
        if all(has_data(direction.values) for direction in directions.values()):
            for exchange in self._exchanges:
                exchange.run(directions)
