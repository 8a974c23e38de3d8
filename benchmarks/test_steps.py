"""Time of a step: fused_optim, torch.optim and other libraries, on tensors of real models."""

from itertools import product

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.candidates import Candidates, Case
from benchmarks.interleaved import CLOCK, DEVICE, Roofline, compare
from benchmarks.machine import thread_counts
from benchmarks.shapes import MODELS, count, smallest
from benchmarks.threads import threads
from benchmarks.variants import BACKENDS, FORMATS, OPTIMIZERS, SHARED, TORCH, parameters, tensors_of

pytestmark = pytest.mark.benchmark(timer=CLOCK)

LISTS = {
    "cpu": ("one-50m", "gpt2-124m", "tiny-1000"),
    "gpu": ("gpt2-124m", "llama-3.2-1b", "tiny-1000", "detector-465"),
}
SMALL_MODELS = ("gpt-1m", "gpt-0.8m")  # where the host and waking threads count most
UNFUSED = ("RMSprop", "NAdam", "RAdam", "Adamax")  # torch has no fused kernels for these
SECONDS = {"cpu": 1.5, "gpu": 1.0}  # for the rounds of one comparison
KIND = "cpu" if DEVICE.type == "cpu" else "gpu"


def cases(full: bool, smoke: bool) -> list[tuple[str, str, str, bool]]:
    """Return list, optimizer, format and clip of every comparison."""
    lists = LISTS[KIND]
    chosen = [
        (model, optimizer, "fp32", True)
        for model, optimizer in product(lists, SHARED)
        if model != "tiny-1000" or optimizer in ("AdamW", *UNFUSED)
    ]
    chosen += product(SMALL_MODELS, ["AdamW"], ["fp32"], [True])
    if KIND == "gpu":
        chosen = list(product(lists[:2], ["AdamW"], FORMATS, [True]))
        chosen += product(lists[2:], ["AdamW"], ["fp32"], [True])
        chosen += product(lists[:1], SHARED, ["fp32"], [True])
    if full:
        chosen += product(MODELS, ["AdamW"], FORMATS, [True, False])
        chosen += product(lists, OPTIMIZERS, ["fp32"], [True, False])
    elif smoke:
        chosen += [(lists[1], "AdamW", "fp32", False)]
    return list(dict.fromkeys(chosen))


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


def candidates_of(model: str, case: Case, full: bool, smoke: bool) -> Candidates:
    """Choose the candidates; the slow ones are timed with AdamW only, unless ``full``."""
    if full or smoke or case.optimizer == "AdamW":
        # compiling takes minutes; one list shows what it gives
        compiled = full and case == ("AdamW", "fp32", True) and model == "one-50m"
        return Candidates(case, compiled=compiled)
    backends = [backend for backend in BACKENDS if backend != "reference"]
    fastest = list(TORCH) if case.optimizer in UNFUSED else ["torch fused"]
    return Candidates(case, backends, fastest)


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
    case = Case(optimizer, format, clip)
    candidates = candidates_of(model, case, request.config.option.full, smoke)
    if not candidates.builders:
        pytest.skip(f"no backend can run {optimizer}, {format} here: {candidates.absent}")
    chosen = tensors_of(model, format, len(candidates.builders))
    if chosen is None:
        number = len(candidates.builders)
        pytest.skip(f"one layer of {model} for {number} optimizers exceeds the free memory")
    shapes, cut = (smallest(chosen[0], 12) if smoke else chosen[0]), chosen[1]
    groups = [[shape] for shape in shapes] if MODELS[model].alone else [shapes]
    benchmark.extra_info.update(
        suite="step",
        model=model,
        **case._asdict(),
        threads=thread_count,
        cut=cut,
        tensors=len(shapes),
        groups=len(groups),
        parameters=count(shapes),
        absent=candidates.absent,
    )
    seconds = 0.0 if smoke else SECONDS[KIND]
    with threads(thread_count):
        variants = candidates.build(parameters(groups, format, DEVICE.type))
        compare(benchmark, [*variants, *roofline.variants()], roofline.evict, seconds)
