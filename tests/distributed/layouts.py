"""Parameters as plain tensors and as DTensors in every layout, with the same gradients."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from distributed.processes import World
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import Parameter

Layout = tuple[DeviceMesh, tuple[Any, ...]]
# uneven shards, an empty shard on the last rank, a vector, a small tensor
SHAPES = ((10, 64), (3, 128), (7,), (130, 64))


def make_layouts(world: World) -> dict[str, Layout]:
    """Return every layout of a matrix by name."""
    line, square = world.line, world.square
    return {
        "rows": (line, (Shard(0),)),
        "columns": (line, (Shard(1),)),
        "replicas": (line, (Replicate(),)),
        "rows in replicas": (square, (Replicate(), Shard(0))),
        "rows and columns": (square, (Shard(0), Shard(1))),
        "rows twice": (square, (Shard(0), Shard(0))),
        "strided": (square, (_StridedShard(0, split_factor=2), Shard(0))),
        "columns and rows": (square, (Shard(1), Shard(0))),
    }


def take_local(full: Tensor, mesh: DeviceMesh, placements: Sequence[Any]) -> Tensor:
    """Return this rank's part of ``full``, by the offsets that torch computes."""
    shape, offsets = compute_local_shape_and_global_offset(full.shape, mesh, placements)
    for dim, (size, offset) in enumerate(zip(shape, offsets, strict=True)):
        full = full.narrow(dim, min(offset, full.shape[dim]), size)
    return full.contiguous()


def shard(full: Tensor, mesh: DeviceMesh, placements: Sequence[Any]) -> DTensor:
    """Return ``full`` as a DTensor, without communication."""
    local = take_local(full.detach(), mesh, placements).clone()
    layout = {"shape": full.shape, "stride": full.stride()}
    return DTensor.from_local(local, mesh, placements, run_check=False, **layout)


def for_dims(placements: Sequence[Any], dims: int) -> tuple[Any, ...]:
    """Return the placements for a tensor of ``dims`` dims: a shard of a missing dim is whole."""
    return tuple(Replicate() if getattr(p, "dim", 0) >= dims else p for p in placements)


class Twin:
    """A plain model and its sharded twin, with the same values and gradients.

    Attributes:
        whole: plain parameters.
        sharded: the same parameters as DTensors.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        dtype: torch.dtype = torch.float32,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
    ) -> None:
        self.generator = torch.Generator().manual_seed(7)
        values = [torch.randn(s, generator=self.generator).to(dtype) for s in shapes]
        self.layouts = [
            (mesh, for_dims(placements, len(shape)))
            for shape, (mesh, placements) in zip(shapes, _cycle(layouts, len(shapes)), strict=True)
        ]
        self.whole = [Parameter(value.clone()) for value in values]
        self.sharded = [
            Parameter(shard(value, *layout))
            for value, layout in zip(values, self.layouts, strict=True)
        ]

    def set_grads(self, scale: float = 1.0, missing: Sequence[int] = ()) -> None:
        """Give both the same new gradients, except to the parameters ``missing``."""
        rows = zip(self.whole, self.sharded, self.layouts, strict=True)
        for i, (param, twin, layout) in enumerate(rows):
            value = scale * torch.randn(param.shape, generator=self.generator).to(param.dtype)
            param.grad = None if i in missing else value
            twin.grad = None if i in missing else shard(value, *layout)

    def assert_same(self, optimizers: Sequence[torch.optim.Optimizer], what: str) -> None:
        """Compare parameters and states of both, bit for bit."""
        one, other = optimizers
        for i, (param, twin) in enumerate(zip(self.whole, self.sharded, strict=True)):
            assert_same_bits(f"{what}, parameter {i}", twin, param, self.layouts[i])
            mine, theirs = one.state.get(param, {}), other.state.get(twin, {})
            assert mine.keys() == theirs.keys(), (what, mine.keys(), theirs.keys())
            for name, value in mine.items():
                if value.dim() == 0 and param.dim() > 0:
                    assert torch.equal(value, theirs[name]), (what, name)
                else:
                    assert isinstance(theirs[name], DTensor), (what, name)
                    where = f"{what}, {name} of {i}"
                    assert_same_bits(where, theirs[name], value, self.layouts[i])


def assert_same_bits(what: str, sharded: Any, whole: Tensor, layout: Layout) -> None:
    """Assert that a DTensor has the bits of ``whole``."""
    assert sharded.shape == whole.shape, (what, sharded.shape, whole.shape)
    assert sharded.placements == layout[1], (what, sharded.placements)
    local, expected = sharded.to_local().detach(), take_local(whole.detach(), *layout)
    assert local.dtype == expected.dtype, (what, local.dtype, expected.dtype)
    assert local.shape == expected.shape, (what, local.shape, expected.shape)
    same = torch.equal(local.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    assert same, f"{what}: the bits differ"


def _cycle(layouts: Sequence[Layout], count: int) -> list[Layout]:
    return [layouts[i % len(layouts)] for i in range(count)]


def list_matrix_layouts(world: World) -> Iterator[tuple[str, list[Layout]]]:
    """Yield the layouts in which whole matrices are transformed, one by one and together."""
    layouts = make_layouts(world)
    names = ("columns", "rows", "rows in replicas", "replicas")
    for name in names:
        yield name, [layouts[name]]
    yield "all", [layouts[name] for name in names]
    yield "other order of ranks", [(DeviceMesh("cpu", [2, 0, 3, 1]), (Shard(0),))]


def list_formats(world: World) -> Iterator[tuple[str, Twin, dict[str, Any]]]:
    """Yield parameters in several layouts, each with options of several formats."""
    layouts = make_layouts(world)
    formats: tuple[dict[str, Any], ...] = (
        {"weights": "split", "states": "int8", "backend": "native"},
        {"weights": "stochastic", "states": "bf16", "ema_decay": 0.9, "seed": 3},
    )
    for given in formats:
        for name in ("rows", "rows in replicas", "columns"):
            twin = Twin([layouts[name]], torch.bfloat16, ((130, 256), (24, 256)))
            yield f"{name}, {given}", twin, given
