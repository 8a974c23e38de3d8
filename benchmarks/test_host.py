"""What a step of many small tensors costs: all of it on the CPU, and the host's part on a GPU.

For the host's part everything is real except the GPU: Triton compiles and launches through a driver
whose launches do nothing, on CPU tensors; torch's kernels are replaced by functions that do
nothing. torch thereby also loses what its kernels do on the host, so its figure is too small rather
than too large. Ours lacks the copies of changed tables to the GPU.
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
    """Count what a step allocates; that takes as long as the timing, so for one group only."""
    if len(groups) > 1:
        return {}
    sizes = tensor_allocations(run)
    return {
        "tensor_allocations": sum(size > 0 for size in sizes),
        "python_peak": python_peak(run),
    }


def ours_without_gpu(groups: Groups) -> list[Variant]:
    """Create ours without launches, with gradients that stay or move, and after a step just taken.

    The last is what the host's work takes when nothing else has used the caches.
    """
    from benchmarks.null_driver import use_null_driver

    use_null_driver()
    optimizer = variants.ours("AdamW", "fp32", "triton", True, groups)
    params = [p for group in groups for p in group["params"]]
    gradients = [[p.grad for p in params], [p.grad.clone() for p in params]]

    def move() -> None:
        use_null_driver()
        gradients.reverse()
        for param, gradient in zip(params, gradients[0], strict=True):
            param.grad = gradient

    def warm() -> None:
        use_null_driver()
        optimizer.step()

    optimizer.step()
    found = facts(optimizer.step, groups)
    return [
        Variant("fused_optim, no launches", "ours", optimizer.step, found, use_null_driver),
        Variant("fused_optim, no launches, warm", "ours", optimizer.step, found, warm),
        Variant("fused_optim, new gradients", "ours", optimizer.step, found, move),
    ]


def ours_on_cpu(groups: Groups, absent: dict[str, str]) -> list[Variant]:
    """Create ours with all its kernels, on the CPU."""
    from benchmarks.null_driver import use_real_driver

    name = "fused_optim native"
    refusal = variants.why_not_ours("AdamW", "fp32", "native", "cpu")
    if refusal is not None:
        absent[name] = refusal
        return []
    optimizer = variants.ours("AdamW", "fp32", "native", True, groups)
    optimizer.step()
    return [Variant(name, "ours", optimizer.step, facts(optimizer.step, groups), use_real_driver)]


def torch_without_kernels(groups: Groups) -> list[Variant]:
    """Create the fused AdamW of torch without its kernels, and with those of the CPU."""
    from benchmarks.null_driver import NoKernels

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
    """Create both with the real device, to time how long until the host is free again."""
    from benchmarks.null_driver import use_real_driver

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
    from benchmarks.null_driver import use_real_driver

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
    """Guards the stand-ins: one that ran kernels would be timed with them."""
    from benchmarks.null_driver import use_real_driver

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
