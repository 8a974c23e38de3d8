"""Time of a step: fused_optim, torch.optim and other libraries, on tensors of real models."""

from itertools import product

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.candidates import Case
from benchmarks.interleaved import CLOCK, Roofline
from benchmarks.machine import thread_counts
from benchmarks.steps import NotMeasured, candidates_of, cases, time_step

pytestmark = pytest.mark.benchmark(timer=CLOCK)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the comparisons by ``--full``, ``--smoke`` and ``--threads``."""
    option = metafunc.config.getoption
    counts = thread_counts(option("threads"))
    chosen = [(*c, n) for n, c in product(counts, cases(option("full"), option("smoke")))]
    names = [
        f"{model}-{optimizer}-{format}-{'clip' if clip else 'no-clip'}-{n}-threads"
        for model, optimizer, format, clip, n in chosen
    ]
    arguments = ("model", "optimizer", "format", "clip", "thread_count")
    metafunc.parametrize(arguments, chosen, ids=names)


def test_step(
    benchmark: BenchmarkFixture,
    roofline: Roofline,
    request: pytest.FixtureRequest,
    smoke: bool,
    model: str,
    optimizer: str,
    format: str,
    clip: bool,
    thread_count: int,
) -> None:
    """Time a step, clipped if ``clip`` is True."""
    full = request.config.option.full
    candidates = candidates_of(model, Case(optimizer, format, clip), full, smoke)
    try:
        time_step(benchmark, roofline, candidates, model, thread_count, smoke)
    except NotMeasured as reason:
        pytest.skip(str(reason))
