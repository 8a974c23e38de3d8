"""Time of a step of many small DTensors, on a mesh of this process: that of the host on a CPU.

Every operation of torch on a DTensor dispatches in Python, and `clip_grad_norm_` has several for
each tensor. The first step of torch's optimizers plans the sharding of whole lists, in a time that
grows with the square of their length: minutes for 4,000 tensors. With one process no collective
runs.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pytest_benchmark.fixture import BenchmarkFixture
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

import fused_optim
from benchmarks.interleaved import Variant, compare

TENSORS = (400, 4000)
SECONDS = 8.0


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Create a mesh of one process."""
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def make_params(count: int, mesh: DeviceMesh) -> list[Parameter]:
    """Return sharded parameters of 16 by 16 elements, with gradients."""

    def make() -> DTensor:
        return DTensor.from_local(torch.randn(16, 16), mesh, [Shard(0)], run_check=False)

    params = [Parameter(make()) for _ in range(count)]
    for param in params:
        param.grad = make()
    return params


def started(name: str, role: str, run: Callable[[], object]) -> Variant:
    """Run the first step; return the variant with its time as a fact."""
    start = time.perf_counter()
    run()
    return Variant(name, role, run, {"first_step": time.perf_counter() - start})


def torch_step(params: list[Parameter]) -> Callable[[], None]:
    """Return a step of torch's fused AdamW after clipping."""
    optimizer = torch.optim.AdamW(params, fused=True)

    def run() -> None:
        clip_grad_norm_(params, 1.0)
        optimizer.step()

    return run


@pytest.mark.parametrize("tensors", TENSORS)
def test_many_dtensors(
    benchmark: BenchmarkFixture, smoke: bool, mesh: DeviceMesh, tensors: int
) -> None:
    """Time AdamW with clipping beside torch's."""
    count = 3 if smoke else tensors
    optimizer = fused_optim.AdamW(make_params(count, mesh), max_grad_norm=1.0)
    found = [
        started("fused_optim native", "ours", optimizer.step),
        started("torch fused", "other", torch_step(make_params(count, mesh))),
    ]
    assert optimizer.backend_used == "native"
    benchmark.extra_info.update(suite="dtensors", tensors=tensors)
    compare(benchmark, found, lambda: None, 0.0 if smoke else SECONDS)
