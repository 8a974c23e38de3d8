"""Fast path: reuse the buckets and address tables of the last step if nothing relevant has changed.

Only the addresses of gradients and options that are numbers may differ from the last step. Guards
compare everything else; any other difference requires a full step. The cache holds no reference to
a tensor of the user.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fused_optim.backends.base import BucketKey, GroupOptions
from fused_optim.backends.rows import Row, RowTemplate
from fused_optim.dtensors import has_same_placements, local_state
from fused_optim.options import get_option
from fused_optim.step.guards import (
    Group,
    GroupGuard,
    State,
    list_values,
    make_guard,
)
from fused_optim.step.plan import CachedInputs

KeyedRows = Sequence[tuple[BucketKey, Row]]


class Given(Protocol):
    """A parameter with a gradient, and the local tensors of both."""

    @property
    def param(self) -> Tensor:
        """The parameter."""

    @property
    def local(self) -> Tensor:
        """The parameter, or its local tensor."""

    @property
    def grad(self) -> Tensor:
        """The gradient, or its local tensor."""


class GroupReader(Protocol):
    """The parameter groups of an optimizer, and methods that read their options.

    The results of both methods depend on the entries of the group only, so that they remain valid
    until an entry changes.
    """

    param_groups: list[Group]
    state: Any
    norm_group: Any

    @property
    def max_grad_norm(self) -> Any:
        """Bound on the norm over all gradients, or None."""

    def group_options(self, group: Group, any_skips: bool) -> GroupOptions:
        """Return the options of a group as kernels need them."""

    def bucket_options(self, group: Group) -> tuple[Any, ...]:
        """Return the options of a group that are part of the bucket keys of its rows."""


class StepCache:
    """The inputs of the last full step, with guards that decide if the next step can reuse them.

    Attributes:
        options: options of each group, updated by :meth:`check`.
    """

    def __init__(
        self,
        optimizer: GroupReader,
        given: Sequence[Given],
        rows: KeyedRows,
        options: list[GroupOptions],
    ) -> None:
        groups, state = optimizer.param_groups, optimizer.state
        self.max_grad_norm = optimizer.max_grad_norm
        self.skips = any(get_option(group, "nonfinite") == "skip" for group in groups)
        self.options = options
        self.bucket_options = [optimizer.bucket_options(group) for group in groups]
        self.groups = [GroupGuard(group) for group in groups]
        self.templates = list(_make_templates([one.param for one in given], state, rows))
        self.masks = np.array([_required_alignment(row, key) - 1 for key, row in rows], np.int64)
        gradients = [row.columns[key.first[1]].data_ptr() for key, row in rows]
        addresses = np.array(gradients, np.int64)
        self.misaligned = addresses & self.masks
        self.tensors = make_guard(groups, state, addresses)

    @classmethod
    def build(
        cls,
        optimizer: GroupReader,
        given: Sequence[Given],
        rows: KeyedRows,
        options: list[GroupOptions],
    ) -> "StepCache | None":
        """Return the cache of a step with these rows; None if the next step must be a full step.

        Args:
            optimizer: optimizer that has run the step.
            given: parameter and gradient of each row.
            rows: rows of the step, with the keys of their buckets.
            options: options of each group.
        """
        values = list_values(list(optimizer.state.values()))
        if not rows or not all(isinstance(value, Tensor) for value in values):
            return None
        if any(one.grad.is_sparse for one in given):
            return None  # rows of a sparse gradient differ from step to step
        if not all(has_same_placements(one.param) for one in given):
            return None  # the gradient is redistributed in every step
        if not all(key.has_data or key.device.type == "meta" for key, _ in rows):
            return None  # a fake tensor has no address to compare
        for one, (key, row) in zip(given, rows, strict=True):
            entry = local_state(optimizer.state.get(one.param, {}), one.param)
            if not _row_matches(row, _column_sources(one, entry, key), key):
                return None
        return cls(optimizer, given, rows, options)

    @property
    def needs_norm(self) -> bool:
        """True if the step needs the norm of the gradients."""
        return self.max_grad_norm is not None or self.skips

    def check(self, optimizer: GroupReader) -> CachedInputs | None:
        """Return the inputs of this step; None if it must be a full step."""
        snapshot = self.tensors.check(optimizer.param_groups, optimizer.state)
        # a gradient of another alignment belongs to another bucket
        if snapshot is None or (snapshot.grad_addresses & self.masks != self.misaligned).any():
            return None
        fresh = self._read_changed_options(optimizer)
        if fresh is None:
            return None
        for i, options in fresh.items():
            self.options[i] = options
        return CachedInputs(
            snapshot.params, snapshot.list_tensors, snapshot.grad_addresses, self.templates
        )

    def _read_changed_options(self, optimizer: GroupReader) -> dict[int, GroupOptions] | None:
        """Return the options of groups that changed, by index; None if a bucket key changed."""
        groups: Any = optimizer.param_groups
        changes = [guard.changed(group) for guard, group in zip(self.groups, groups, strict=True)]
        if None in changes:
            return None
        changed: Any = list(compress(range(len(groups)), changes))
        skips = self.skips
        if changed:
            skips = any(get_option(group, "nonfinite") == "skip" for group in groups)
        if skips != self.skips or optimizer.max_grad_norm is not self.max_grad_norm:
            changed = range(len(groups))  # each group's options have these two
        self.skips, self.max_grad_norm = skips, optimizer.max_grad_norm
        if any(optimizer.bucket_options(groups[i]) != self.bucket_options[i] for i in changed):
            return None
        return {i: optimizer.group_options(groups[i], skips) for i in changed}


def _state_columns(key: BucketKey) -> list[str]:
    """Return the names of the state entries that are columns, in their order."""
    codecs = zip(key.rule.state_keys, key.codecs[2:], strict=True)
    return [name for state_key, codec in codecs for name in codec.column_keys(state_key)]


def _column_sources(one: Given, entry: Mapping[str, Any], key: BucketKey) -> list[Tensor | None]:
    """Return the tensors from which the columns of a row are made, in their order."""
    extras = map(entry.get, key.codecs[0].extra_keys)
    return [one.local, *extras, one.grad, *map(entry.get, _state_columns(key))]


def _row_matches(row: Row, sources: list[Tensor | None], key: BucketKey) -> bool:
    """Return True if the columns are ``sources``; for a kernel, if the addresses are equal."""
    pairs = list(zip(row.columns, sources, strict=True))
    if key.backend == "reference":
        return all(column is source for column, source in pairs)
    return all(s is not None and column.data_ptr() == s.data_ptr() for column, s in pairs)


def _make_templates(params: list[Tensor], state: State, rows: KeyedRows) -> Iterator[RowTemplate]:
    """Yield the template of each row; its list is parameters, gradients and state values."""
    names = [(id(param), name) for param, entry in state.items() for name in entry]
    index = {name: 2 * len(params) + i for i, name in enumerate(names)}
    for i, (param, (key, row)) in enumerate(zip(params, rows, strict=True)):
        extras = [index[id(param), name] for name in key.codecs[0].extra_keys]
        states = [index[id(param), name] for name in _state_columns(key)]
        columns = (i, *extras, len(params) + i, *states)
        scalar_state = tuple(index[id(param), name] for name in key.rule.scalar_state)
        step = key.rule.matrix_step
        row_states = [index[id(param), name] for name in step.row_states] if step else []
        read = itemgetter(*columns, *scalar_state, *row_states)
        counts = (len(columns), len(scalar_state))
        yield RowTemplate(read, *counts, row.group, row.noise_key, row.layout)


def _required_alignment(row: Row, key: BucketKey) -> int:
    """Return the alignment in bytes that the gradient needs for the widest accesses to the row."""
    sizes = [column.itemsize for column in row.columns]
    return 16 // max(sizes) * sizes[key.first[1]]
