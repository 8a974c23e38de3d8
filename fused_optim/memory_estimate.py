"""An estimate of the memory and traffic of an optimizer in bytes, before any allocation."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from fused_optim.backends.base import BucketKey
from fused_optim.backends.matrix_batches import count_workspace
from fused_optim.backends.matrix_runner import direction_dtype, list_passes, matrix_step_of
from fused_optim.backends.rows import Row
from fused_optim.dtensors import is_dtensor, to_local, wrap_like
from fused_optim.optimizers.adam import AdamW
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.step.engine import StepEngine, needs_grad_norm


class Memory(NamedTuple):
    """The memory of a model in training in bytes, without activations.

    Attributes:
        numel: number of elements of all parameters.
        parameters: bytes of the parameters.
        gradients: bytes of the gradients, one for each parameter that requires one.
        states: bytes of the optimizer's state after the first step.
        moved: bytes that one step reads and writes, including the norm.
        workspace: bytes of the temporary tensors of a step on matrices, as of Muon; 0 for others.
    """

    numel: int
    parameters: int
    gradients: int
    states: int
    moved: int
    workspace: int = 0

    @property
    def total(self) -> int:
        """Bytes of parameters, gradients and states."""
        return self.parameters + self.gradients + self.states

    def __str__(self) -> str:
        lines = [f"{'':12}{'GiB':>10}{'bytes a parameter':>20}"]
        names = ["parameters", "gradients", "states", "total", "moved"]
        for name in names + ["workspace"] * (self.workspace > 0):
            size = getattr(self, name)
            each = size / self.numel if self.numel else 0.0
            lines.append(f"{name:12}{size / 2**30:10.3f}{each:20.2f}")
        return "\n".join(lines)


def memory(
    model: Module | Iterable[Any],
    optimizer: type[FusedOptimizer] = AdamW,
    **options: Any,
) -> Memory:
    """Print and return the memory of a model in training with an optimizer.

    Nothing is allocated: the optimizer is created for copies of the parameters on the meta device,
    and ``model`` may be on the meta device too. DTensors count with their local tensors: the result
    is that of this rank.

    Args:
        model: module, or the ``params`` of an optimizer: parameters, named pairs, or groups.
        optimizer: optimizer class of this library.
        options: keyword arguments of the optimizer.

    Raises:
        ValueError: an option is out of range, or there are no parameters.
        TypeError: an option is not a number, or a parameter is not a tensor.

    Source: each column of a format is read and written once a step, the gradient read once, and
    once more for the norm: docs/development.md
    """
    estimate = estimate_memory(model, optimizer, **options)
    print(estimate)  # noqa: T201  # printing is the purpose of the function
    return estimate


def estimate_memory(
    model: Module | Iterable[Any],
    optimizer: type[FusedOptimizer],
    **options: Any,
) -> Memory:
    """Return what :func:`memory` prints, with the same arguments."""
    given = model.parameters() if isinstance(model, Module) else model
    params = [_materialize(entry) for entry in given]
    copies = optimizer([_on_meta(entry) for entry in params], **options)
    meta_params = [param for group in copies.param_groups for param in group["params"]]
    for group in copies.param_groups:
        sparse = copies.rule(group).sparse == "required"
        for param in group["params"]:
            param.grad = _make_gradient(param, sparse) if param.requires_grad else None
    engine = StepEngine()
    rows = engine.prepare_rows(copies)
    gradients = [row.columns[key.first[1]] for key, row in rows]
    states = [t for state in copies.state.values() for t in state.values()]
    moved = sum(
        each.bytes_moved * row.columns[0].numel() for key, row in rows for each in list_passes(key)
    )
    if needs_grad_norm(copies):
        moved += sum(grad.nbytes for grad in gradients)
    return Memory(
        sum(to_local(param).numel() for param in meta_params),
        sum(map(_nbytes, _tensors(params))),
        sum(grad.nbytes for grad in gradients),
        sum(_nbytes(tensor) for tensor in states if isinstance(tensor, Tensor)),
        round(moved),
        sum(_count_workspace(rows)),
    )


def _count_workspace(rows: list[tuple[BucketKey, Row]]) -> Iterator[int]:
    """Yield the bytes of the temporary tensors of each bucket with a step on matrices."""
    buckets: dict[BucketKey, list[Row]] = {}
    for key, row in rows:
        if key.rule.matrix_step is not None:
            buckets.setdefault(key, []).append(row)
    for key, members in buckets.items():
        step = matrix_step_of(key)
        layouts = [row.layout for row in members]
        numels = [row.columns[0].numel() for row in members]
        yield count_workspace(layouts, numels, step, direction_dtype(step, key.device))


def _make_gradient(param: Tensor, sparse: bool) -> Tensor:
    """Return a gradient on the meta device; a sparse one has every row of the parameter."""
    values = torch.empty_like(param)
    if not sparse or param.dim() == 0:
        return values
    rows = torch.empty(1, len(param), dtype=torch.int64, device="meta")
    return torch.sparse_coo_tensor(
        rows, values, param.shape, device="meta", check_invariants=False, is_coalesced=True
    )


def _on_meta(entry: Any) -> Any:
    """Copy a parameter, a named pair or a group to the meta device."""
    if isinstance(entry, dict):
        given = entry["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        return {**entry, "params": [_on_meta(param) for param in params]}
    if isinstance(entry, tuple):
        return (entry[0], _on_meta(entry[1]))
    if not isinstance(entry, Tensor):
        return entry  # the optimizer raises TypeError for it
    if not entry.requires_grad:  # not updated: the class of the tensor does not matter
        copy = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
        return Parameter(copy, requires_grad=False)
    copy = torch.empty_like(to_local(entry), device="meta")
    return Parameter(wrap_like(copy, entry) if is_dtensor(entry) else copy, entry.requires_grad)


def _materialize(entry: Any) -> Any:
    """Replace an iterator of parameters in a group by a list."""
    if isinstance(entry, dict) and not isinstance(entry["params"], Tensor):
        return {**entry, "params": list(entry["params"])}
    return entry


def _tensors(entries: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in parameters, named pairs and groups."""
    for entry in entries:
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, dict):
            given = entry["params"]
            yield from _tensors([given] if isinstance(given, Tensor) else given)
        else:
            yield entry[1]


def _nbytes(tensor: Tensor) -> int:
    """Sum the bytes of ``tensor``, or of the inner tensors of a wrapper or sparse tensor."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        inner = (getattr(tensor, name) for name in names)
        return sum(_nbytes(value) for value in inner if isinstance(value, Tensor))
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices().nbytes + tensor.values().nbytes
    return tensor.nbytes
