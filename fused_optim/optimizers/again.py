"""The step after a step: what was made for the last one still fits, seen in a few calls over all.

Nothing is believed because a tensor is the same object, and no tensor is kept. The structure (which
parameters, in which groups, with which states) is compared by the ids of objects that are alive
now: if the parameters and the keys of the state have the ids that they had, they belong together
as they did, whether or not an id is in its second life. What a kernel then needs of each tensor,
its type, dtype, device, shape, strides and address, is read and compared anew. Whatever differs,
except addresses of gradients and numbers among the options, asks for a full step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, compress, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fused_optim import storage
from fused_optim.backends import Kind, Options
from fused_optim.layout import Recipe, Row
from fused_optim.plan import Same
from fused_optim.private_api import TENSOR_GUARDS

BLOCK = 256
T = TypeVar("T")
Group = dict[str, Any]
State = Mapping[Tensor, dict[str, Any]]
Rows = Sequence[tuple[Kind, Row]]

_gradient: Callable[[Tensor], Any] = attrgetter("grad")
_address: Callable[[Tensor], int] = Tensor.data_ptr
_CONSTANT = (float, int, str, type(None))


class Optimizer(Protocol):
    """What an optimizer says of its groups; both methods look at the entries of the group only."""

    param_groups: list[Group]
    state: Any
    max_grad_norm: float | None

    def _options(self, group: Group, any_skips: bool) -> Options: ...

    def _selection(self, group: Group) -> tuple[Any, ...]: ...


def alike(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether the arguments have the types, dtypes, devices, shapes and strides of ``tensors``."""
    if TENSOR_GUARDS is not None:  # 50 ns a tensor; to ask for each attribute takes a microsecond
        fixed = {"dynamic_dims_sizes": None, "dynamic_dims_strides": None}
        check: Callable[..., bool] = TENSOR_GUARDS(*tensors, **fixed).check
        return check
    before = list(map(_facts, tensors))
    return lambda *others: list(map(_facts, others)) == before


def _facts(tensor: Any) -> tuple[Any, ...] | None:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return None
    facts = tensor.dtype, tensor.device, tensor.shape, tensor.stride()
    return (type(tensor), *facts, tensor.is_neg(), tensor.is_conj())


class Entries:
    """The options of a group as they were.

    They are compared as objects, and kept, so that no other takes the place of one. A group with
    an option that can change in place, as a tensor can, is always taken to have changed.
    """

    def __init__(self, group: Group) -> None:
        names = [name for name in group if name not in ("params", "param_names")]
        self.count = len(group)
        self.read = itemgetter(*names)
        self.values: tuple[Any, ...] = ()
        self.changed(group)

    def changed(self, group: Group) -> bool | None:
        """Whether ``group`` has other options than at the last look; None: other names."""
        try:
            values = self.read(group)
        except KeyError:
            return None
        if len(group) != self.count:
            return None
        if self.values and all(map(is_, values, self.values)):
            return False
        pairs = zip(values, self.values or repeat(None), strict=False)
        constant = all(new is old or _is_constant(new) for new, old in pairs)
        self.values = values if constant else ()
        return True


def _is_constant(value: Any) -> bool:
    return isinstance(value, _CONSTANT) or (type(value) is tuple and all(map(_is_constant, value)))


class States:
    """The entries of the state, by name, and what is in them."""

    def __init__(self, state: State) -> None:
        self.keys = list(map(id, state))
        blocks = list(_blocks(list(state.values())))
        self.names = [_names(block) for block in blocks]
        self.alike = [alike(_values(block)) for block in blocks]

    def read(self, state: State) -> tuple[list[Tensor], list[int]] | None:
        """All tensors and their addresses; None if they are not as they were."""
        if list(map(id, state)) != self.keys:
            return None
        tensors: list[Tensor] = []
        addresses: list[int] = []
        blocks = _blocks(list(state.values()))
        for block, names, same in zip(blocks, self.names, self.alike, strict=True):
            if set(map(type, block)) != {dict} or _names(block) != names:
                return None
            values = _values(block)
            if not same(*values):
                return None
            tensors += values
            addresses += map(_address, values)
        return tensors, addresses


class Params:
    """The parameters and what they have for gradients."""

    def __init__(self, groups: list[Group]) -> None:
        self.sizes = [len(group["params"]) for group in groups]
        params = list(_params(groups))
        self.ids = list(map(id, params))
        self.has = [param.grad is not None for param in params]
        self.lacks = [not has for has in self.has]
        blocks = _blocks(list(compress(params, self.has)))
        self.alike = [alike([*own, *map(_gradient, own)]) for own in blocks]

    def read(self, groups: list[Group]) -> "Found | None":
        """Those with gradients, these, and the addresses of both; None if not as they were."""
        if [len(group["params"]) for group in groups] != self.sizes:
            return None
        params = list(_params(groups))
        if list(map(id, params)) != self.ids:
            return None
        if any(self.lacks):
            if not all(map(is_, map(_gradient, compress(params, self.lacks)), repeat(None))):
                return None
            params = list(compress(params, self.has))
        found = Found(params, [], [], [])
        for own, same in zip(_blocks(params), self.alike, strict=True):
            gradients = list(map(_gradient, own))
            if not same(*own, *gradients):
                return None
            found.gradients.extend(gradients)
            found.fixed.extend(map(_address, own))
            found.moving.extend(map(_address, gradients))
        return found


class Found(NamedTuple):
    """Parameters, their gradients, and the addresses of the ones and of the others."""

    params: list[Tensor]
    gradients: list[Any]
    fixed: list[int]
    moving: list[int]


class Last:
    """What a step was made from."""

    def __init__(self, optimizer: Optimizer, rows: Rows, options: list[Options]) -> None:
        groups, state = optimizer.param_groups, optimizer.state
        self.max_grad_norm = optimizer.max_grad_norm
        self.skips = any(group["nonfinite"] == "skip" for group in groups)
        self.options = options
        self.selections = [optimizer._selection(group) for group in groups]
        self.entries = [Entries(group) for group in groups]
        self.params, self.states = Params(groups), States(state)
        params = [param for param in _params(groups) if param.grad is not None]
        self.addresses = list(map(_address, [*params, *_values(list(state.values()))]))
        self.recipes = list(_recipes(params, state, rows))
        self.masks = np.array([_needed(row, kind) - 1 for kind, row in rows], np.int64)
        gradients = [row.columns[kind.first[1]].data_ptr() for kind, row in rows]
        self.misaligned = np.array(gradients, np.int64) & self.masks

    @classmethod
    def of(cls, optimizer: Optimizer, rows: Rows, options: list[Options]) -> "Last | None":
        """What the step of these rows was made from; None if the next must be a full one anyway."""
        values = _values(list(optimizer.state.values()))
        if not rows or not all(isinstance(value, Tensor) for value in values):
            return None
        params = [param for param in _params(optimizer.param_groups) if param.grad is not None]
        for param, (kind, row) in zip(params, rows, strict=True):
            if not _stands_for(row, _sources(param, optimizer.state, kind), kind):
                return None
        return cls(optimizer, rows, options)

    @property
    def measures(self) -> bool:
        """Whether the step needs the norm."""
        return self.max_grad_norm is not None or self.skips

    def same(self, optimizer: Optimizer) -> Same | None:
        """The tensors of this step if all but the gradients are where they were; else None."""
        found = self.params.read(optimizer.param_groups)
        if found is None or not self._same_options(optimizer):
            return None
        states = self.states.read(optimizer.state)
        if states is None or found.fixed + states[1] != self.addresses:
            return None
        addresses = np.array(found.moving, np.int64)
        # another alignment is another kind, and so another launch
        if not np.array_equal(addresses & self.masks, self.misaligned):
            return None
        tensors = [*found.params, *found.gradients, *states[0]]
        return Same(found.params, tensors, addresses, self.recipes)

    def _same_options(self, optimizer: Optimizer) -> bool:
        """Bring the options up to date; False if they select other rules, formats or backends."""
        groups: Any = optimizer.param_groups
        changes = [own.changed(group) for own, group in zip(self.entries, groups, strict=True)]
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
            if optimizer._selection(groups[i]) != self.selections[i]:
                return False
        return True


def _params(groups: list[Group]) -> Iterator[Tensor]:
    return chain.from_iterable(map(itemgetter("params"), groups))


def _blocks(items: list[T]) -> Iterator[list[T]]:
    """Parts that stay in a core's cache from one look to the next."""
    return (items[i : i + BLOCK] for i in range(0, len(items), BLOCK))


def _names(states: list[dict[str, Any]]) -> list[Any]:
    # a tuple for each would be a thousand objects for the garbage collector
    return [*chain.from_iterable(states), *map(len, states)]


def _values(states: list[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, states)))


def _sources(param: Tensor, state: State, kind: Kind) -> list[Tensor | None]:
    """The tensors from which the columns of a row are made, in their order."""
    slots = zip(kind.rule.slots, kind.codecs[2:], strict=True)
    names = [name for slot, codec in slots for name in storage.names(slot, codec)]
    own: Mapping[str, Any] = state.get(param, {})
    return [
        param,
        *map(own.get, storage.extras(kind.codecs[0])),
        param.grad,
        *map(own.get, names),
    ]


def _stands_for(row: Row, sources: list[Tensor | None], kind: Kind) -> bool:
    """Whether ``row`` is these tensors; a kernel, which sees addresses, may have views of them."""
    pairs = list(zip(row.columns, sources, strict=True))
    if kind.backend == "reference":
        return all(column is source for column, source in pairs)
    return all(s is not None and column.data_ptr() == s.data_ptr() for column, s in pairs)


def _recipes(params: list[Tensor], state: State, rows: Rows) -> Iterator[Recipe]:
    """How to make the rows of another step from its parameters, gradients and states."""
    names = [(id(key), name) for key, own in state.items() for name in own]
    where = {key: 2 * len(params) + i for i, key in enumerate(names)}
    for i, (param, (kind, row)) in enumerate(zip(params, rows, strict=True)):
        slots = zip(kind.rule.slots, kind.codecs[2:], strict=True)
        states = [name for slot, codec in slots for name in storage.names(slot, codec)]
        extras = [where[id(param), name] for name in storage.extras(kind.codecs[0])]
        columns = (i, *extras, len(params) + i, *(where[id(param), name] for name in states))
        counters = tuple(where[id(param), name] for name in kind.rule.counters)
        yield Recipe(itemgetter(*columns, *counters), len(columns), row.group, row.place)


def _needed(row: Row, kind: Kind) -> int:
    """The alignment that the gradient needs, in bytes, for the widest accesses to the row."""
    sizes = [column.itemsize for column in row.columns]
    return 16 // max(sizes) * sizes[kind.first[1]]
