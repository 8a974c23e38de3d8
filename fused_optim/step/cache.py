"""Reuse of the last step: its buckets and address tables, if nothing but little has changed.

That is the addresses of gradients, and options that are numbers. Guards compare all else with what
it was at the last step; whatever differs makes a full step. No tensor is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fused_optim import storage
from fused_optim.backends.base import BucketKey, Options
from fused_optim.step.rows import RowTemplate, Row
from fused_optim.step.guards import (
    Group,
    GroupGuard,
    State,
    list_params,
    list_values,
    make_guard,
)
from fused_optim.step.plan import CachedInputs

Rows = Sequence[tuple[BucketKey, Row]]


class Optimizer(Protocol):
    """What an optimizer says of its groups; both methods look at the entries of the group only."""

    param_groups: list[Group]
    state: Any
    max_grad_norm: float | None

    def _options(self, group: Group, any_skips: bool) -> Options: ...

    def _bucket_options(self, group: Group) -> tuple[Any, ...]: ...


class StepCache:
    """What the last full step was made from.

    Attributes:
        options: of each group, brought up to date by :meth:`check`.
    """

    def __init__(self, optimizer: Optimizer, rows: Rows, options: list[Options]) -> None:
        groups, state = optimizer.param_groups, optimizer.state
        self.max_grad_norm = optimizer.max_grad_norm
        self.skips = any(group["nonfinite"] == "skip" for group in groups)
        self.options = options
        self.selections = [optimizer._bucket_options(group) for group in groups]
        self.groups = [GroupGuard(group) for group in groups]
        params = [param for param in list_params(groups) if param.grad is not None]
        self.recipes = list(_recipes(params, state, rows))
        self.masks = np.array([_required_alignment(row, key) - 1 for key, row in rows], np.int64)
        gradients = [row.columns[key.first[1]].data_ptr() for key, row in rows]
        addresses = np.array(gradients, np.int64)
        self.misaligned = addresses & self.masks
        self.tensors = make_guard(groups, state, addresses)

    @classmethod
    def build(cls, optimizer: Optimizer, rows: Rows, options: list[Options]) -> "StepCache | None":
        """Return the cache of the step of these rows; None if the next must be a full one."""
        values = list_values(list(optimizer.state.values()))
        if not rows or not all(isinstance(value, Tensor) for value in values):
            return None
        params = [param for param in list_params(optimizer.param_groups) if param.grad is not None]
        for param, (key, row) in zip(params, rows, strict=True):
            if not _row_matches(row, _column_sources(param, optimizer.state, key), key):
                return None
        return cls(optimizer, rows, options)

    @property
    def measures(self) -> bool:
        """Whether the step needs the norm."""
        return self.max_grad_norm is not None or self.skips

    def check(self, optimizer: Optimizer) -> CachedInputs | None:
        """Return the tensors of this step; None if it must be a full one."""
        found = self.tensors.check(optimizer.param_groups, optimizer.state)
        if found is None or not self._check_options(optimizer):
            return None
        # a gradient of another alignment belongs to another kind, and so to another launch
        if (found.gradients & self.masks != self.misaligned).any():
            return None
        return CachedInputs(found.params, found.tensors, found.gradients, self.recipes)

    def _check_options(self, optimizer: Optimizer) -> bool:
        """Bring the options up to date; False if they select other rules, formats or backends."""
        groups: Any = optimizer.param_groups
        changes = [own.changed(group) for own, group in zip(self.groups, groups, strict=True)]
        if None in changes:
            return False
        changed: Any = list(compress(range(len(groups)), changes))
        skips = self.skips
        if changed:
            skips = any(group["nonfinite"] == "skip" for group in groups)
        if skips != self.skips or optimizer.max_grad_norm is not self.max_grad_norm:
            changed = range(len(groups))  # each group's options have these two
        self.skips, self.max_grad_norm = skips, optimizer.max_grad_norm
        for i in changed:
            self.options[i] = optimizer._options(groups[i], skips)
            if optimizer._bucket_options(groups[i]) != self.selections[i]:
                return False
        return True


def _column_sources(param: Tensor, state: State, key: BucketKey) -> list[Tensor | None]:
    """Return the tensors from which the columns of a row are made, in their order."""
    state_keys = zip(key.rule.state_keys, key.codecs[2:], strict=True)
    names = [name for state_key, codec in state_keys for name in storage.names(state_key, codec)]
    own: Mapping[str, Any] = state.get(param, {})
    return [
        param,
        *map(own.get, storage.extras(key.codecs[0])),
        param.grad,
        *map(own.get, names),
    ]


def _row_matches(row: Row, sources: list[Tensor | None], key: BucketKey) -> bool:
    """Return whether ``row`` is these tensors; to a kernel a view is, which has their addresses."""
    pairs = list(zip(row.columns, sources, strict=True))
    if key.backend == "reference":
        return all(column is source for column, source in pairs)
    return all(s is not None and column.data_ptr() == s.data_ptr() for column, s in pairs)


def _recipes(params: list[Tensor], state: State, rows: Rows) -> Iterator[RowTemplate]:
    """Yield how to make the rows of a later step from its parameters, gradients and states."""
    names = [(id(key), name) for key, own in state.items() for name in own]
    where = {key: 2 * len(params) + i for i, key in enumerate(names)}
    for i, (param, (key, row)) in enumerate(zip(params, rows, strict=True)):
        state_keys = zip(key.rule.state_keys, key.codecs[2:], strict=True)
        states = [name for state_key, codec in state_keys for name in storage.names(state_key, codec)]
        extras = [where[id(param), name] for name in storage.extras(key.codecs[0])]
        columns = (i, *extras, len(params) + i, *(where[id(param), name] for name in states))
        scalar_state = tuple(where[id(param), name] for name in key.rule.scalar_state)
        yield RowTemplate(itemgetter(*columns, *scalar_state), len(columns), row.group, row.place)


def _required_alignment(row: Row, key: BucketKey) -> int:
    """Return the alignment in bytes that the gradient needs for the widest accesses to the row."""
    sizes = [column.itemsize for column in row.columns]
    return 16 // max(sizes) * sizes[key.first[1]]
