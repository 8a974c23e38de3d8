"""Time and memory of a step of AdamW in every storage format, in interleaved rounds."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.candidates import Candidates, Case
from benchmarks.interleaved import CLOCK, DEVICE, Roofline, Variant, compare
from benchmarks.machine import thread_counts
from benchmarks.shapes import MODELS, Shape, count, smallest
from benchmarks.threads import threads
from benchmarks.variants import FORMATS, TORCH_FORMATS, parameters

pytestmark = pytest.mark.benchmark(timer=CLOCK)

MODEL = "one-16m"  # more than caches hold in every format, and a twentieth of memory in all
BACKENDS = ("triton", "native")
SECONDS = 4.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Time with each number of ``--threads``."""
    counts = thread_counts(metafunc.config.getoption("threads"))
    metafunc.parametrize("thread_count", counts, ids=[f"{n}-threads" for n in counts])


def candidates_of(format: str) -> Candidates:
    """Choose the candidates for this format: ours, torch's fused optimizer, other libraries."""
    kinds = ["torch fused"] if format in TORCH_FORMATS else []
    return Candidates(Case("AdamW", format, True), BACKENDS, kinds)


def variants_of(format: str, candidates: Candidates, shapes: list[Shape]) -> list[Variant]:
    """Create the optimizers that keep one format, with the format in their names."""
    variants = candidates.build(parameters([shapes], format, DEVICE.type))
    for variant in variants:
        variant.facts |= {"format": format, "library": variant.name}
        variant.name += f", {format}"
    return variants


def test_formats(
    benchmark: BenchmarkFixture, roofline: Roofline, smoke: bool, thread_count: int
) -> None:
    """Time a clipped step in every format."""
    shapes = MODELS[MODEL].tensors(0)
    shapes = smallest(shapes, 1) if smoke else shapes
    # a trial of each loads the libraries whose threads are set below
    candidates = {format: candidates_of(format) for format in FORMATS}
    present = {name for one in candidates.values() for name in one.builders}
    absent = {
        name: why
        for one in candidates.values()
        for name, why in one.absent.items()
        if name not in present
    }
    if not present:
        pytest.skip(f"neither the Triton nor the native backend can run here: {absent}")
    benchmark.extra_info.update(
        suite="formats",
        model=MODEL,
        optimizer="AdamW",
        clip=True,
        threads=thread_count,
        parameters=count(shapes),
        absent=absent,
    )
    with threads(thread_count):
        found = [v for format, one in candidates.items() for v in variants_of(format, one, shapes)]
        seconds = 0.0 if smoke else SECONDS
        compare(benchmark, [*found, *roofline.variants()], roofline.evict, seconds)
