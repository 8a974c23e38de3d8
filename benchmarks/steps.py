"""One comparison of steps: which there are, their candidates, and the timing of one."""

from itertools import product
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.candidates import Candidates, Case
from benchmarks.interleaved import DEVICE, Roofline, Stopwatch, compare
from benchmarks.shapes import MODELS, count, smallest
from benchmarks.threads import threads
from benchmarks.variants import BACKENDS, FORMATS, OPTIMIZERS, SHARED, TORCH, parameters, tensors_of

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


def candidates_of(model: str, case: Case, full: bool, smoke: bool) -> Candidates:
    """Choose the candidates; the slow ones are timed with AdamW only, unless ``full``."""
    if full or smoke or case.optimizer == "AdamW":
        # compiling takes minutes; one list shows what it gives
        compiled = full and case == ("AdamW", "fp32", True) and model == "one-50m"
        return Candidates(case, compiled=compiled)
    backends = [backend for backend in BACKENDS if backend != "reference"]
    fastest = list(TORCH) if case.optimizer in UNFUSED else ["torch fused"]
    return Candidates(case, backends, fastest)


class NotMeasured(Exception):
    """A comparison cannot be made on this machine; the message has the reason."""


def time_step(
    benchmark: BenchmarkFixture | Stopwatch,
    roofline: Roofline,
    candidates: Candidates,
    model: str,
    thread_count: int,
    smoke: bool,
) -> None:
    """Time a step of all candidates in interleaved rounds.

    Args:
        benchmark: gets the durations, and the facts of the comparison, into ``extra_info``.
        roofline: buffers of the copy and the triad, which are timed too.
        candidates: optimizers of the comparison.
        model: key of :data:`benchmarks.shapes.MODELS`.
        thread_count: number of threads.
        smoke: True for tiny tensors and one run, which measures nothing.

    Raises:
        NotMeasured: no candidate runs here, or the tensors do not fit into memory.
    """
    case, number = candidates.case, len(candidates.builders)
    if not number:
        raise NotMeasured(
            f"no backend can run {case.optimizer}, {case.format} here: {candidates.absent}"
        )
    chosen = tensors_of(model, case.format, number)
    if chosen is None:
        raise NotMeasured(f"one layer of {model} for {number} optimizers exceeds the free memory")
    shapes, cut = (smallest(chosen[0], 12) if smoke else chosen[0]), chosen[1]
    groups = [[shape] for shape in shapes] if MODELS[model].alone else [shapes]
    facts: dict[str, Any] = dict(
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
    benchmark.extra_info.update(facts)
    with threads(thread_count):
        variants = candidates.build(parameters(groups, case.format, DEVICE.type))
        seconds = 0.0 if smoke else SECONDS[KIND]
        compare(benchmark, [*variants, *roofline.variants()], roofline.evict, seconds)
