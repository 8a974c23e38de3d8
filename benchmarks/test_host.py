"""Time of a step of many small tensors: total time on a CPU, time of the host on a GPU.

To time the host alone, Triton compiles and launches on CPU tensors through a driver whose launches
do nothing, and torch's kernels are replaced by functions that do nothing. torch's time then lacks
the host's work inside its kernels, so it is a lower bound. Our time lacks the copies of changed
tables to the GPU.
"""

import importlib.util
import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import variants
from benchmarks.allocation import python_peak, tensor_allocations
from benchmarks.interleaved import DEVICE, Variant, compare, synchronize
from benchmarks.shapes import grouped
from benchmarks.variants import TORCH, Groups, Step, clipped, copied

pytestmark = [
    # the host's time, even where there is a device
    pytest.mark.benchmark(timer=time.perf_counter),
    pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton"),
]
TENSORS = (100, 300, 1000, 3000, 10_000)
GROUPS = (1, 100)
SECONDS = 0.8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the sizes by ``--smoke``."""
    if "tensors" not in metafunc.fixturenames:
        return
    smoke = metafunc.config.getoption("smoke")
    metafunc.parametrize("tensors", (5, 9) if smoke else TENSORS)
    metafunc.parametrize("groups", (1, 3) if smoke else GROUPS)


def facts(run: Step, groups: Groups) -> dict[str, int]:
    """Count the allocations of a step; only for one group, since it takes as long as the timing."""
    if len(groups) > 1:
        return {}
    sizes = tensor_allocations(run)
    return {
        "tensor_allocations": sum(size > 0 for size in sizes),
        "python_peak": python_peak(run),
    }


def ours_without_gpu(groups: Groups) -> list[Variant]:
    """Create our optimizer without launches, in three variants.

    The gradients keep their addresses, or take new ones before each step, or the step follows
    right after another, so that the caches hold its data.
    """
    from benchmarks.host_only_driver import use_host_only_driver

    use_host_only_driver()
    optimizer = variants.ours("AdamW", "fp32", "triton", True, groups)
    params = [p for group in groups for p in group["params"]]
    gradients = [[p.grad for p in params], [p.grad.clone() for p in params]]

    def move() -> None:
        use_host_only_driver()
        gradients.reverse()
        for param, gradient in zip(params, gradients[0], strict=True):
            param.grad = gradient

    def warm() -> None:
        use_host_only_driver()
        optimizer.step()

    optimizer.step()
    found = facts(optimizer.step, groups)
    return [
        Variant("fused_optim, no launches", "ours", optimizer.step, found, use_host_only_driver),
        Variant("fused_optim, no launches, warm", "ours", optimizer.step, found, warm),
        Variant("fused_optim, new gradients", "ours", optimizer.step, found, move),
    ]


def ours_on_cpu(groups: Groups, absent: dict[str, str]) -> list[Variant]:
    """Create our optimizer with its kernels, on the CPU."""
    from benchmarks.host_only_driver import use_real_driver

    name = "fused_optim native"
    refusal = variants.why_not_ours("AdamW", "fp32", "native", "cpu")
    if refusal is not None:
        absent[name] = refusal
        return []
    optimizer = variants.ours("AdamW", "fp32", "native", True, groups)
    optimizer.step()
    return [Variant(name, "ours", optimizer.step, facts(optimizer.step, groups), use_real_driver)]


def torch_without_kernels(groups: Groups) -> list[Variant]:
    """Create torch's fused AdamW without its kernels, and with its CPU kernels."""
    from benchmarks.host_only_driver import NoKernels

    optimizer = variants.theirs("AdamW", TORCH["torch fused"], groups)
    step = clipped(optimizer, clip=True, foreach=True)
    stubs = NoKernels([p.grad for group in groups for p in group["params"]])

    def run() -> None:
        with stubs:
            step()

    step()
    return [
        Variant("torch fused, no kernels", "other", run, facts(run, groups)),
        Variant("torch fused, CPU kernels", "other", step, facts(step, groups)),
    ]


def with_device(groups: Groups) -> list[Variant]:
    """Create both optimizers on the GPU, to time the host until the step returns."""
    from benchmarks.host_only_driver import use_real_driver

    def ready() -> None:
        use_real_driver()
        synchronize()

    ready()
    ours = variants.ours("AdamW", "fp32", "triton", True, copied(groups))
    theirs = variants.theirs("AdamW", TORCH["torch fused"], copied(groups))
    step = clipped(theirs, clip=True, foreach=True)
    for run in (ours.step, step):
        run()
    return [
        Variant("fused_optim, GPU", "ours", ours.step, prepare=ready),
        Variant("torch fused, GPU", "other", step, prepare=ready),
    ]


def test_host(benchmark: BenchmarkFixture, smoke: bool, tensors: int, groups: int) -> None:
    """Time AdamW with clipping on tensors of 16 elements."""
    from benchmarks.host_only_driver import use_real_driver

    shapes = list(grouped([(16,)] * tensors, groups))
    made = variants.parameters(shapes, "fp32", "cpu")
    absent: dict[str, str] = {}
    try:
        found = [*ours_on_cpu(copied(made), absent), *ours_without_gpu(copied(made))]
        found += torch_without_kernels(copied(made))
        if DEVICE.type == "cuda":
            found += with_device(variants.parameters(shapes, "fp32", "cuda"))
        benchmark.extra_info.update(suite="host", tensors=tensors, groups=groups, absent=absent)
        compare(benchmark, found, lambda: None, 0.0 if smoke else SECONDS)
    finally:
        use_real_driver()


def test_nothing_is_updated() -> None:
    """Guard against a driver or a stub that runs kernels and times them with the host."""
    from benchmarks.host_only_driver import use_real_driver

    try:
        for make in (ours_without_gpu, torch_without_kernels):
            groups = variants.parameters([[(16,), (3,)]], "fp32", "cpu")
            silent, *_, other = make(groups)
            silent.prepare()
            before = [p.detach().clone() for p in groups[0]["params"]]
            silent.run()
            assert all(map(torch.equal, groups[0]["params"], before))
        other.run()  # torch's kernels
        assert not any(map(torch.equal, groups[0]["params"], before))
    finally:
        use_real_driver()
