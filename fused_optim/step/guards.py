"""Guards: what a step depends on, remembered to compare the next step with it.

Parameters and keys of the state are matched by ``id()``. An id may be in use again after its
object has been freed; that is safe, for what a kernel needs of each tensor, its type, dtype,
device, shape, strides and address, is read and compared as well. No guard keeps a tensor alive.

:class:`HostGuard` reads tensors in C, :class:`PythonGuard` in Python; both decide alike.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, compress, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from fused_optim.private_api import TENSOR_GUARDS, dlpack_exchange_api

BLOCK = 256  # tensors that are read at once: their objects stay in a core's cache
T = TypeVar("T")
Group = dict[str, Any]
State = Mapping[Tensor, dict[str, Any]]
log = logging.getLogger("fused_optim")

_gradient: Callable[[Tensor], Any] = attrgetter("grad")
read_address: Callable[[Tensor], int] = Tensor.data_ptr
_CONSTANT = (float, int, str, type(None))
READABLE = (Tensor, Parameter)


class GradSnapshot(NamedTuple):
    """The tensors of a step that is as the last one was, but for the addresses of gradients.

    Attributes:
        params: those with a gradient.
        grad_addresses: int64 [parameters], the addresses of the gradients.
        list_tensors: returns the parameters, their gradients, and all values of the state.
    """

    params: list[Tensor]
    grad_addresses: np.ndarray[Any, Any]
    list_tensors: Callable[[], list[Tensor]]


class TensorGuard(Protocol):
    """What all tensors of a step are, and where all but the gradients are."""

    def check(self, groups: list[Group], state: State) -> GradSnapshot | None:
        """Return the tensors of this step; None if they are not as they were."""


def make_tensor_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return what tells whether its arguments have the facts of ``tensors``.

    These are types, dtypes, devices, shapes, strides and the bits of lazy negation and conjugation.
    """
    if TENSOR_GUARDS is not None:
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


class GroupGuard:
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
        """Return whether ``group`` has other options than at the last look; None: other names."""
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


class StateGuard:
    """The entries of the state, by name, and the tensors in them."""

    def __init__(self, state: State) -> None:
        self.keys = list(map(id, state))
        blocks = list(_blocks(list(state.values())))
        self.names = [_names(block) for block in blocks]
        self.checks = [make_tensor_check(list_values(block)) for block in blocks]

    def read(self, state: State) -> tuple[list[Tensor], list[int]] | None:
        """Return all tensors and their addresses; None if they are not as they were."""
        if list(map(id, state)) != self.keys:
            return None
        tensors: list[Tensor] = []
        addresses: list[int] = []
        blocks = _blocks(list(state.values()))
        for block, names, check in zip(blocks, self.names, self.checks, strict=True):
            if set(map(type, block)) != {dict} or _names(block) != names:
                return None
            values = list_values(block)
            if not check(*values):
                return None
            tensors += values
            addresses += map(read_address, values)
        return tensors, addresses


class ParamGuard:
    """The parameters, which of them have gradients, and these.

    Attributes:
        sizes: of the groups, in parameters.
        ids: of the parameters.
        has: whether each has a gradient.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.sizes = [len(group["params"]) for group in groups]
        params = list_params(groups)
        self.ids = list(map(id, params))
        self.has = [param.grad is not None for param in params]
        self.lacks = [not has for has in self.has]
        blocks = _blocks(list(compress(params, self.has)))
        self.checks = [make_tensor_check([*own, *map(_gradient, own)]) for own in blocks]

    def read(self, groups: list[Group]) -> "ParamsRead | None":
        """Return those with gradients, these, and the addresses; None if not as they were."""
        if [len(group["params"]) for group in groups] != self.sizes:
            return None
        params = list_params(groups)
        if list(map(id, params)) != self.ids:
            return None
        if any(self.lacks):
            if not all(map(is_, map(_gradient, compress(params, self.lacks)), repeat(None))):
                return None
            params = list(compress(params, self.has))
        found = ParamsRead(params, [], [], [])
        for own, check in zip(_blocks(params), self.checks, strict=True):
            gradients = list(map(_gradient, own))
            if not check(*own, *gradients):
                return None
            found.gradients.extend(gradients)
            found.fixed.extend(map(read_address, own))
            found.moving.extend(map(read_address, gradients))
        return found


class ParamsRead(NamedTuple):
    """Parameters, their gradients, and the addresses of the ones and of the others."""

    params: list[Tensor]
    gradients: list[Any]
    fixed: list[int]
    moving: list[int]


class PythonGuard:
    """A :class:`TensorGuard` that reads in Python."""

    def __init__(self, groups: list[Group], state: State) -> None:
        self.params, self.states = ParamGuard(groups), StateGuard(state)
        params = list(compress(list_params(groups), self.params.has))
        self.addresses = list(map(read_address, [*params, *list_values(list(state.values()))]))

    def check(self, groups: list[Group], state: State) -> GradSnapshot | None:
        """See :class:`TensorGuard`."""
        found = self.params.read(groups)
        states = None if found is None else self.states.read(state)
        if found is None or states is None or found.fixed + states[1] != self.addresses:
            return None
        tensors = [*found.params, *found.gradients, *states[0]]
        return GradSnapshot(found.params, np.array(found.moving, np.int64), lambda: tensors)


class HostGuard:
    """A :class:`TensorGuard` that reads in C, through DLPack.

    Raises:
        ImportError: the C module was not built.
        ValueError, RuntimeError, BufferError: torch has no exchange API, or a tensor is of a
            subclass, complex, or without memory.
    """

    def __init__(self, groups: list[Group], state: State) -> None:
        from fused_optim._host import Snapshot

        api = dlpack_exchange_api()
        params = list_params(groups)
        self.sizes = [len(group["params"]) for group in groups]
        self.has = [param.grad is not None for param in params]
        self.all = all(self.has)
        self.snapshot = Snapshot(api, Tensor.is_neg, READABLE, params, _as_dict(state))

    def check(self, groups: list[Group], state: State) -> GradSnapshot | None:
        """See :class:`TensorGuard`."""
        if [len(group["params"]) for group in groups] != self.sizes:
            return None
        params = list_params(groups)
        addresses = self.snapshot.check(params, _as_dict(state))
        if addresses is None:
            return None
        own = params if self.all else list(compress(params, self.has))

        def tensors() -> list[Tensor]:
            return [*own, *map(_gradient, own), *list_values(list(state.values()))]

        return GradSnapshot(own, np.frombuffer(addresses, np.int64), tensors)


def make_guard(
    groups: list[Group], state: State, grad_addresses: np.ndarray[Any, Any]
) -> TensorGuard:
    """Return a guard of these tensors; ``grad_addresses``: int64, the addresses it must read."""
    try:
        guard = HostGuard(groups, state)
        found = guard.check(groups, state)
        if found is not None and np.array_equal(found.grad_addresses, grad_addresses):
            log.debug("the tensors of a step are compared in C")
            return guard
        reason = "DLPack gives other addresses"
    except (ImportError, ValueError, RuntimeError, BufferError) as error:
        reason = str(error).partition("\n")[0]
    log.debug("the tensors of a step are compared in Python: %s", reason)
    return PythonGuard(groups, state)


def _as_dict(state: State) -> dict[Any, Any]:
    """Return the state as C iterates over it; that of a subclass of dict may have another order."""
    if type(state) is defaultdict or type(state) is dict:
        return state
    return dict(zip(state, state.values(), strict=True))


def list_params(groups: list[Group]) -> list[Tensor]:
    """Return all parameters, one group after the other."""
    return list(chain.from_iterable(map(itemgetter("params"), groups)))


def list_values(states: list[dict[str, Any]]) -> list[Any]:
    """Return all values of entries of the state."""
    return list(chain.from_iterable(map(dict.values, states)))


def _blocks(items: list[T]) -> Iterator[list[T]]:
    """Yield parts that stay in a core's cache from one look to the next."""
    return (items[i : i + BLOCK] for i in range(0, len(items), BLOCK))


def _names(states: list[dict[str, Any]]) -> list[Any]:
    # a tuple for each would be a thousand objects for the garbage collector
    return [*chain.from_iterable(states), *map(len, states)]
