"""Guards: records of the inputs of a step, to detect if the next step has the same inputs.

Parameters and keys of the state are matched by ``id()``. An id may be reused after its object has
been freed; that is safe, because the properties of each tensor that a kernel depends on (type,
dtype, device, shape, strides and address) are compared as well. No guard keeps a tensor alive.

:class:`HostGuard` reads tensors in C, :class:`PythonGuard` in Python; their results are equal.
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
from typing_extensions import override

from fused_optim.dtensors import are_placed_alike, is_dtensor, to_local_all
from fused_optim.private_api import TENSOR_GUARDS, dlpack_exchange_api

TENSORS_PER_READ = (
    256  # number of tensors that are read at once: their objects fit in a core's cache
)
T = TypeVar("T")
Group = dict[str, Any]
State = Mapping[Tensor, dict[str, Any]]
log = logging.getLogger("fused_optim")

_gradient: Callable[[Tensor], Any] = attrgetter("grad")
read_address: Callable[[Tensor], int] = Tensor.data_ptr
_CONSTANT = (float, int, str, type(None))
READABLE = (Tensor, Parameter)


class GradSnapshot(NamedTuple):
    """The tensors of a step that equals the last one, except for the addresses of gradients.

    Attributes:
        params: parameters that have a gradient, and the local tensors of those that are DTensors.
        grad_addresses: addresses of the gradients, int64 [parameters].
        list_tensors: function that returns the parameters, their gradients, and all state values,
            with the local tensor of each DTensor.
    """

    params: list[Tensor]
    grad_addresses: np.ndarray[Any, Any]
    list_tensors: Callable[[], list[Tensor]]


class TensorGuard(Protocol):
    """A record of the properties of all tensors of a step, and of all addresses but gradients'."""

    def check(self, groups: list[Group], state: State) -> GradSnapshot | None:
        """Return the tensors of this step; None if they differ from the recorded ones."""


def make_tensor_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return a function that returns True if its arguments have the properties of ``tensors``.

    The properties are type, dtype, device, shape, strides, and the negative and conjugate bits.
    """
    if TENSOR_GUARDS is not None:
        fixed = {"dynamic_dims_sizes": None, "dynamic_dims_strides": None}
        check: Callable[..., bool] = TENSOR_GUARDS(*tensors, **fixed).check
        return check
    expected = list(map(_properties, tensors))
    return lambda *others: list(map(_properties, others)) == expected


def make_unwrapping(tensors: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return a function that replaces DTensors by their local tensors, if ``tensors`` has any."""
    return to_local_all if any(map(is_dtensor, tensors)) else lambda unchanged: unchanged


def _properties(tensor: Any) -> tuple[Any, ...] | None:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return None
    layout = tensor.dtype, tensor.device, tensor.shape, tensor.stride()
    return (type(tensor), *layout, tensor.is_neg(), tensor.is_conj())


class GroupGuard:
    """A record of the options of a group.

    Options are compared by identity; the guard holds references to them, so that no id is reused. A
    group with an option that can change in place, such as a tensor, always counts as changed.
    """

    def __init__(self, group: Group) -> None:
        names = [name for name in group if name not in ("params", "param_names")]
        self.count = len(group)
        self.read = itemgetter(*names)
        self.values: tuple[Any, ...] = ()
        self.changed(group)

    def changed(self, group: Group) -> bool | None:
        """Return True if an option differs from the last call; None if the names differ."""
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
    """A record of the entries of the state: their names, and the properties of their tensors."""

    def __init__(self, state: State) -> None:
        self.keys = list(map(id, state))
        blocks = list(_blocks(list(state.values())))
        self.names = [_names(block) for block in blocks]
        self.to_local = make_unwrapping(list_values(list(state.values())))
        self.checks = [make_tensor_check(self.to_local(list_values(block))) for block in blocks]

    def read(self, state: State) -> tuple[list[Tensor], list[int]] | None:
        """Return all tensors and their addresses; None if they differ from the recorded ones."""
        if list(map(id, state)) != self.keys:
            return None
        tensors: list[Tensor] = []
        addresses: list[int] = []
        blocks = _blocks(list(state.values()))
        for block, names, check in zip(blocks, self.names, self.checks, strict=True):
            if set(map(type, block)) != {dict} or _names(block) != names:
                return None
            values = self.to_local(list_values(block))
            if not check(*values):
                return None
            tensors += values
            addresses += map(read_address, values)
        return tensors, addresses


class ParamGuard:
    """A record of the parameters and their gradients.

    Attributes:
        sizes: number of parameters of each group.
        ids: ``id()`` of each parameter.
        has_grad: True for each parameter that has a gradient.
        lacks_grad: the negation of ``has_grad``.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.sizes = [len(group["params"]) for group in groups]
        params = list_params(groups)
        self.ids = list(map(id, params))
        self.has_grad = [param.grad is not None for param in params]
        self.lacks_grad = [not has_grad for has_grad in self.has_grad]
        self.to_local = make_unwrapping(params)
        self.has_dtensors = self.to_local is to_local_all
        blocks = _blocks(list(compress(params, self.has_grad)))
        self.checks = [
            make_tensor_check(self.to_local([*block, *map(_gradient, block)])) for block in blocks
        ]

    def read(self, groups: list[Group]) -> "ParamsRead | None":
        """Return parameters, gradients and addresses; None if they differ from the record."""
        if [len(group["params"]) for group in groups] != self.sizes:
            return None
        params = list_params(groups)
        if list(map(id, params)) != self.ids:
            return None
        if any(self.lacks_grad):
            if not all(map(is_, map(_gradient, compress(params, self.lacks_grad)), repeat(None))):
                return None
            params = list(compress(params, self.has_grad))
        gradients = list(map(_gradient, params))
        if self.has_dtensors and not are_placed_alike(params, gradients):
            return None
        local = ParamsRead(self.to_local(params), self.to_local(gradients), [], [])
        blocks = zip(_blocks(local.params), _blocks(local.gradients), self.checks, strict=True)
        for block, of_block, check in blocks:
            if not check(*block, *of_block):
                return None
            local.param_addresses.extend(map(read_address, block))
            local.grad_addresses.extend(map(read_address, of_block))
        return local


class ParamsRead(NamedTuple):
    """Parameters that have a gradient, their gradients, and the addresses of both; all local."""

    params: list[Tensor]
    gradients: list[Any]
    param_addresses: list[int]
    grad_addresses: list[int]


class PythonGuard(TensorGuard):
    """A guard that reads tensors in Python."""

    def __init__(self, groups: list[Group], state: State) -> None:
        self.params, self.states = ParamGuard(groups), StateGuard(state)
        params = self.params.to_local(list(compress(list_params(groups), self.params.has_grad)))
        values = self.states.to_local(list_values(list(state.values())))
        self.addresses = list(map(read_address, [*params, *values]))

    @override
    def check(self, groups: list[Group], state: State) -> GradSnapshot | None:
        read = self.params.read(groups)
        states = None if read is None else self.states.read(state)
        if read is None or states is None or read.param_addresses + states[1] != self.addresses:
            return None
        tensors = [*read.params, *read.gradients, *states[0]]
        params = read.params
        if self.params.has_dtensors:  # a DTensor and its local tensor have a version counter each
            params = [*params, *filter(is_dtensor, list_params(groups))]
        return GradSnapshot(params, np.array(read.grad_addresses, np.int64), lambda: tensors)


class HostGuard(TensorGuard):
    """A guard that reads tensors in C, through DLPack.

    Raises:
        ImportError: the C module was not built.
        ValueError, RuntimeError, BufferError: torch has no exchange API, or a tensor is an instance
            of a subclass, complex, or without memory.
    """

    def __init__(self, groups: list[Group], state: State) -> None:
        from fused_optim._host import Snapshot

        api = dlpack_exchange_api()
        params = list_params(groups)
        self.sizes = [len(group["params"]) for group in groups]
        self.has_grad = [param.grad is not None for param in params]
        self.all_have_grad = all(self.has_grad)
        self.snapshot = Snapshot(api, Tensor.is_neg, READABLE, params, _as_dict(state))

    @override
    def check(self, groups: list[Group], state: State) -> GradSnapshot | None:
        if [len(group["params"]) for group in groups] != self.sizes:
            return None
        params = list_params(groups)
        addresses = self.snapshot.check(params, _as_dict(state))
        if addresses is None:
            return None
        with_grad = params if self.all_have_grad else list(compress(params, self.has_grad))

        def list_tensors() -> list[Tensor]:
            values = list_values(list(state.values()))
            return [*with_grad, *map(_gradient, with_grad), *values]

        return GradSnapshot(with_grad, np.frombuffer(addresses, np.int64), list_tensors)


def make_guard(
    groups: list[Group], state: State, grad_addresses: np.ndarray[Any, Any]
) -> TensorGuard:
    """Return a guard of these tensors, in C if it reads the right addresses.

    Args:
        groups: parameter groups.
        state: state of the optimizer.
        grad_addresses: expected addresses of the gradients, int64 [parameters with a gradient].
    """
    try:
        guard = HostGuard(groups, state)
        snapshot = guard.check(groups, state)
        if snapshot is not None and np.array_equal(snapshot.grad_addresses, grad_addresses):
            log.debug("the tensors of a step are compared in C")
            return guard
        reason = "DLPack gives other addresses"
    except (ImportError, ValueError, RuntimeError, BufferError) as error:
        reason = str(error).partition("\n")[0]
    log.debug("the tensors of a step are compared in Python: %s", reason)
    return PythonGuard(groups, state)


def _as_dict(state: State) -> dict[Any, Any]:
    """Return the state as a dict for C, which would ignore the order of a subclass of dict."""
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
    """Yield slices of items, whose tensors fit in a core's cache for repeated reads."""
    return (items[i : i + TENSORS_PER_READ] for i in range(0, len(items), TENSORS_PER_READ))


def _names(states: list[dict[str, Any]]) -> list[Any]:
    # a tuple for each entry would be a thousand objects for the garbage collector
    return [*chain.from_iterable(states), *map(len, states)]
