"""Distributed tensors (DTensor): their local tensors, their states and the groups that shard them.

The plan, the kernels and the codecs see the local tensors of this rank only. The states of a
DTensor are DTensors with its mesh, its placements and its shape, those of rows as its rows, so that
``torch.distributed.checkpoint`` reshards them with it; its step count is a plain tensor.

Source: https://docs.pytorch.org/docs/stable/distributed.tensor.html
"""

import math
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from fused_optim.private_api import local_tensor, locate_shard


def is_dtensor(tensor: Any) -> bool:
    """Return True for a DTensor."""
    # without an import of the module, which takes a second, there is no DTensor
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def to_local(tensor: Any) -> Any:
    """Return the local tensor of a DTensor, in the same memory; anything else unchanged.

    A collective that still runs on the local tensor is waited for, by the current stream.
    """
    if not is_dtensor(tensor):
        return tensor
    local: Any = local_tensor(tensor)
    wait = getattr(local, "trigger_wait", None)  # of an AsyncCollectiveTensor
    return local if wait is None else wait()


def wrap_like(local: Tensor, param: Any) -> Any:
    """Return ``local`` as a DTensor with mesh and placements of ``param``.

    Args:
        local: local tensor of a state, of the shape of the local tensor of ``param``; or the scales
            of its blocks, ``[rows, blocks of a row]``.
        param: the DTensor whose state it is.
    """
    shape, stride = param.shape, param.stride()
    if local.shape != to_local(param).shape:
        own = math.prod(to_local(param).shape[1:])  # elements of a row of dim 0
        blocks = local.shape[1] * (math.prod(shape[1:]) // max(1, own))
        shape, stride = torch.Size((shape[0], blocks)), (blocks, 1)
    return _wrap(local, param.device_mesh, param.placements, shape, stride)


def wrap_rows(local: Tensor, param: Any, dims: int) -> Any:
    """Return ``local`` as a DTensor if ``param`` is one; each rank has the rows of its elements.

    Args:
        local: local tensor of a state with the first ``dims`` dims of ``param``, and one element in
            each of the others.
        param: the parameter whose state it is.
        dims: number of dims.
    """
    if not is_dtensor(param):
        return local
    shape = torch.Size((*param.shape[:dims], *local.shape[dims:]))
    stride = torch.empty(shape, device="meta").stride()
    return _wrap(local, param.device_mesh, place_rows(param, dims), shape, stride)


def _wrap(local: Tensor, mesh: Any, placements: Any, shape: Any, stride: tuple[int, ...]) -> Any:
    """Return ``local`` as a DTensor, without communication."""
    from torch.distributed.tensor import DTensor

    layout = {"shape": shape, "stride": stride}
    with torch.no_grad():
        return DTensor.from_local(local, mesh, placements, run_check=False, **layout)


def place_rows(param: Any, dims: int) -> tuple[Any, ...]:
    """Return the placements of a state with the first ``dims`` dims of a DTensor ``param``."""
    whole = sys.modules["torch.distributed.tensor"].Replicate()
    return tuple(p if getattr(p, "dim", 0) < dims else whole for p in param.placements)


class LocalState(MutableMapping[str, Any]):
    """The state of a DTensor, read and written as local tensors.

    Attributes:
        entry: the state entries of the parameter in ``optimizer.state``: DTensors and 0-dim
            tensors.
        param: the parameter.
    """

    def __init__(self, entry: dict[str, Any], param: Any) -> None:
        self.entry, self.param = entry, param

    @override
    def __getitem__(self, name: str) -> Any:
        return to_local(self.entry[name])

    @override
    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.dim() > 0:
            if to_local(self.entry.get(name)) is value:
                return
            value = value if is_dtensor(value) else wrap_like(value, self.param)
        self.entry[name] = value

    @override
    def __delitem__(self, name: str) -> None:
        del self.entry[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.entry)

    @override
    def __len__(self) -> int:
        return len(self.entry)


def local_state(entry: dict[str, Any], param: Tensor) -> MutableMapping[str, Any]:
    """Return the state entries of ``param`` as local tensors; those of a plain tensor unchanged."""
    return LocalState(entry, param) if is_dtensor(param) else entry


class ShardPosition(NamedTuple):
    """The position of the local elements in the whole tensor, both in the order of memory.

    Local element ``e`` is element ``offset + e // run * stride + e % run`` of the whole tensor.

    Attributes:
        offset: index of the first element.
        run: number of consecutive elements; 0 if all of them are.
        stride: distance between the first elements of two runs.
    """

    offset: int = 0
    run: int = 0
    stride: int = 0


def find_position(param: Any) -> ShardPosition:
    """Return the position of the local elements of a DTensor in the whole tensor.

    At most one dim after the first is sharded, and the local tensor is contiguous.
    """
    shape, offsets = locate_shard(param.shape, param.device_mesh, param.placements)
    strides = [math.prod(param.shape[dim + 1 :]) for dim in range(param.dim())]
    offset = sum(o * s for o, s in zip(offsets, strides, strict=True))
    cut = [dim for dim in range(1, param.dim()) if shape[dim] != param.shape[dim]]
    if not cut or 0 in shape:
        return ShardPosition(offset)
    return ShardPosition(offset, math.prod(shape[cut[0] :]), math.prod(param.shape[cut[0] :]))


def sharding_groups(param: Any) -> list[Any]:
    """Return the process groups over which ``param`` is sharded; [] for a plain tensor."""
    if not is_dtensor(param):
        return []
    mesh = param.device_mesh
    return [
        mesh.get_group(dim)
        for dim, placement in enumerate(param.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    ]


class MatrixSharding(NamedTuple):
    """The parts of a parameter's matrices that the ranks of a process group have.

    Attributes:
        group: process group.
        shape: shape of what these ranks have together: matrices are whole, and dims before those of
            a matrix have the size that they have on this rank.
        dim: dim that the ranks share.
        spans: first index in the dim and number of indices of each rank, in the order of the group.
    """

    group: Any
    shape: tuple[int, ...]
    dim: int
    spans: tuple[tuple[int, int], ...]


def find_matrix_mesh_dims(param: Any, batch_dims: int) -> list[int]:
    """Return the dims of the mesh that shard the matrices of ``param``; [] for a plain tensor.

    Args:
        param: a parameter.
        batch_dims: number of its dims before those of a matrix.
    """
    if not is_dtensor(param):
        return []
    return [
        dim
        for dim, placement in enumerate(param.placements)
        if not placement.is_replicate()
        and param.device_mesh.size(dim) > 1
        and placement.dim >= batch_dims
    ]


def find_matrix_sharding(param: Any, batch_dims: int) -> MatrixSharding | None:
    """Return how ranks share the matrices of ``param``; None if this rank has them whole.

    See :func:`find_matrix_mesh_dims` for the arguments; :func:`describe_bad_matrix_sharding` is
    None for ``param``.
    """
    found = find_matrix_mesh_dims(param, batch_dims)
    if not found:
        return None
    mesh, dim = param.device_mesh, param.placements[found[0]].dim
    shape = list(to_local(param).shape)
    shape[dim] = param.shape[dim]
    spans = _cut(shape[dim], mesh.size(found[0]))
    group = mesh.get_group(found[0])
    # the ranks of a mesh may be in another order than those of its groups
    line: list[Any] = list(mesh.get_coordinate())
    line[found[0]] = slice(None)
    coordinates = {rank: i for i, rank in enumerate(mesh.mesh[tuple(line)].tolist())}
    ranks = torch.distributed.get_process_group_ranks(group)
    return MatrixSharding(group, tuple(shape), dim, tuple(spans[coordinates[r]] for r in ranks))


def describe_bad_matrix_sharding(param: Any, batch_dims: int) -> str | None:
    """Return the requirement that the sharding of matrices fails, worded to follow "must", or None.

    See :func:`find_matrix_mesh_dims` for the arguments.
    """
    found = find_matrix_mesh_dims(param, batch_dims)
    if not found:
        return None
    mesh, placement = param.device_mesh, param.placements[found[0]]
    is_plain = type(placement) is sys.modules["torch.distributed.tensor"].Shard
    if len(found) > 1 or not is_plain:
        return (
            "have matrices that one dim of the mesh shards, with Shard, got placements "
            f"{param.placements}: shard it over one dim of the mesh, or put it in a group with "
            "algorithm='adamw'"
        )
    size = to_local(param).shape[placement.dim]
    _, expected = _cut(param.shape[placement.dim], mesh.size(found[0]))[
        mesh.get_coordinate()[found[0]]
    ]
    if size != expected:
        return (
            f"have {expected} of {param.shape[placement.dim]} indices of dim {placement.dim} on "
            f"this rank, as torch.chunk gives, got {size}: shard it by distribute_tensor()"
        )
    return None


def _cut(size: int, parts: int) -> list[tuple[int, int]]:
    """Return first index and number of indices of each part, as ``torch.chunk`` and ``Shard``."""
    step = -(-size // parts)
    return [(min(i * step, size), max(0, min(step, size - i * step))) for i in range(parts)]


def unsupported_reason(param: Any, scale_block: int, stochastic: bool) -> str | None:
    """Return the requirement that a DTensor fails, worded to follow "must"; None for none.

    Args:
        param: a DTensor.
        scale_block: number of elements that share a scale in the formats of its group; 1 without
            scales.
        stochastic: True if a format of its group rounds stochastically.
    """
    if any(placement.is_partial() for placement in param.placements):
        return f"be sharded or replicated, got {param.placements}"
    local = to_local(param)
    if stochastic and not (local.is_contiguous() and _has_runs(param)):
        return (
            "be contiguous, and sharded in at most one of the dims after the first, for formats "
            f"with stochastic rounding, got {tuple(param.shape)}, {param.placements}, strides "
            f"{local.stride()}: put it in a separate group, {{'params': ..., 'weights': 'plain', "
            "'states': 'fp32'}"
        )
    if scale_block > 1 and not _keeps_blocks(param, local, scale_block):
        return (
            f"have rows (dims after the first) of a multiple of {scale_block} elements on every "
            "rank, and dims after the second whole, for states with scales: put it in a separate "
            f"group, {{'params': ..., 'states': 'fp32'}} (got {tuple(param.shape)}, "
            f"{param.placements})"
        )
    return None


def _has_runs(param: Any) -> bool:
    """Return True if :func:`find_position` can describe the local elements."""
    cut = {getattr(placement, "dim", 0) for placement in param.placements} - {0}
    return len(cut) < 2


def _keeps_blocks(param: Any, local: Tensor, scale_block: int) -> bool:
    """Return True if the blocks of the local tensor are blocks of the whole tensor."""
    if param.dim() < 2 or math.prod(param.shape[1:]) % scale_block or not local.is_contiguous():
        return False
    for dim, placement in enumerate(param.placements):
        tensor_dim = getattr(placement, "dim", 0)
        if tensor_dim == 0:
            continue
        even = param.shape[1] % param.device_mesh.size(dim) == 0
        if tensor_dim > 1 or not even:
            return False
    return math.prod(local.shape[1:]) % scale_block == 0


def take_gradient(param: Any) -> Tensor:
    """Return the local tensor of the gradient of a DTensor, placed as the parameter is.

    A gradient with other placements, such as Partial, is redistributed: a collective.

    Raises:
        ValueError: parameter and gradient are not both DTensors of the same mesh and shape.
    """
    grad = param.grad
    if not is_dtensor(param):
        raise ValueError(f"be a plain tensor as the parameter is, got a DTensor, {grad.placements}")
    if not is_dtensor(grad) or grad.device_mesh != param.device_mesh or grad.shape != param.shape:
        got = f"{tuple(grad.shape)} on {grad.device_mesh}" if is_dtensor(grad) else type(grad)
        raise ValueError(
            f"be a DTensor of shape {tuple(param.shape)} on {param.device_mesh}, got {got}"
        )
    if grad.placements != param.placements:
        with torch.no_grad():
            grad = grad.redistribute(param.device_mesh, param.placements)
    local: Tensor = to_local(grad)
    return local


def view_as(tensor: Any, dtype: torch.dtype, dims: int) -> Tensor:
    """Return the memory of ``tensor`` as another dtype of the same size, a DTensor as a DTensor.

    Args:
        tensor: tensor to view.
        dtype: dtype of the result.
        dims: number of dims of the result, by dims of one element after the others.
    """
    more = (1,) * (dims - tensor.dim())
    local = _with_dims(to_local(tensor).view(dtype), more, dims)
    if not is_dtensor(tensor):
        return local
    shape, stride = torch.Size((*tensor.shape, *more)[:dims]), (*tensor.stride(), *more)[:dims]
    whole: Tensor = _wrap(local, tensor.device_mesh, tensor.placements, shape, stride)
    return whole


def _with_dims(tensor: Tensor, more: tuple[int, ...], dims: int) -> Tensor:
    """Add dims of one element at the end of ``tensor``, or remove those beyond ``dims``."""
    shape = (*tensor.shape, *more)[:dims]
    return tensor.as_strided(shape, (*tensor.stride(), *more)[:dims])


def has_same_placements(param: Any) -> bool:
    """Return True if the gradient of ``param`` is placed as it is; plain tensors are."""
    return not is_dtensor(param) or param.grad.placements == param.placements


def to_local_all(tensors: list[Tensor]) -> list[Tensor]:
    """Return the local tensors of DTensors, without waiting for collectives; others unchanged."""
    dtensor: Any = sys.modules["torch.distributed.tensor"].DTensor
    return [local_tensor(tensor) if isinstance(tensor, dtensor) else tensor for tensor in tensors]


def are_placed_alike(params: list[Any], gradients: list[Any]) -> bool:
    """Return True if the gradients of DTensors have their meshes and placements."""

    def read(tensors: list[Any]) -> list[Any]:
        found: list[Any] = [tensor for tensor in tensors if is_dtensor(tensor)]
        return [(tensor.placements, tensor.device_mesh) for tensor in found]

    return read(params) == read(gradients)


def find_misplaced_state(
    entry: dict[str, Any], param: Any, dims: Mapping[str, int]
) -> tuple[str, Any] | None:
    """Return name and right placements of a state with other ones or another mesh; None for none.

    Args:
        entry: states of ``param``.
        param: a DTensor.
        dims: number of dims of ``param`` that a state has, for those that do not have all.
    """
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            expected = place_rows(param, dims[name]) if name in dims else param.placements
            if not _is_placed(value, param.device_mesh, expected):
                return name, expected
    return None


def _is_placed(tensor: Any, mesh: Any, placements: Any) -> bool:
    same = is_dtensor(tensor) and tensor.device_mesh == mesh and tensor.placements == placements
    return bool(same)
