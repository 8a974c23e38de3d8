"""Goals of the project and their measured values: a section of the report.

A missed goal links to the section of docs/performance.md with the reason and what was tried.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

Row = dict[str, Any]
Values = dict[str, float]

OURS = "fused_optim native"
NO_LAUNCHES = "fused_optim, no launches"
THIRD_PARTY = ("DeepSpeed", "bitsandbytes", "torchao")
UNFUSED = ("RMSprop", "NAdam", "RAdam", "Adamax")  # torch has no fused kernels for these

# tensors, optimizers, the largest part of the time of torch's fastest step with clipping
STEPS = (
    ("one-50m", ("AdamW",), 0.80),
    ("gpt2-124m", ("AdamW",), 0.82),
    ("tiny-1000", ("AdamW",), 0.15),
    ("gpt-1m", ("AdamW",), 0.65),
    ("gpt-0.8m", ("AdamW",), 0.65),
    ("one-50m", ("Adam",), 0.82),
    ("gpt2-124m", ("Adam",), 0.82),
    ("one-50m", ("SGD", "Adagrad"), 0.75),
    ("gpt2-124m", ("SGD", "Adagrad"), 0.75),
    ("one-50m", UNFUSED, 0.22),
    ("gpt2-124m", UNFUSED, 0.25),
    ("tiny-1000", UNFUSED, 0.10),
)
PAGE = "../../docs/performance.md"  # relative to benchmarks/results
# headings of the page's sections, with the reasons for a missed goal
BYTES = "Memory-bound steps"
SMALL = "Small models"
CODES = "8-bit states"
NEAREST = "bf16 states of DeepSpeed"
HOST = "Host time of many tensors"


class Goal(NamedTuple):
    """Upper bound of a measured quantity.

    Attributes:
        name: label of the quantity, with its unit.
        bound: largest value that meets the goal.
        measure: function from the rows of results to values by name, empty without measurements.
        reason: heading of the section of docs/performance.md about a missed goal, or "".
        form: format string of a value.
    """

    name: str
    bound: float
    measure: Callable[[list[Row]], Values]
    reason: str = ""
    form: str = "{:.2f}"


def select(rows: Iterable[Row], **facts: Any) -> list[Row]:
    """Return the rows that have these facts."""
    return [r for r in rows if all(r.get(name) == value for name, value in facts.items())]


def beside_torch(model: str, optimizers: Iterable[str], threads: int, rows: list[Row]) -> Values:
    """Return our time divided by that of torch's fused step, or of its fastest without one."""
    found = {}
    for optimizer in optimizers:
        facts = {"model": model, "optimizer": optimizer, "format": "fp32", "clip": True}
        chosen = select(rows, suite="step", threads=threads, **facts)
        times = {row["name"]: row["median"] for row in chosen}
        torchs = {name: time for name, time in times.items() if name.startswith("torch ")}
        if OURS in times and torchs:
            fastest = min(torchs.values())
            found[optimizer] = times[OURS] / torchs.get("torch fused", fastest)
    return found


def beside_bytes(threads: int, rows: list[Row]) -> Values:
    """Return the time ratio of split weights with int8 states to fp32, over the ratio of bytes."""
    chosen = select(rows, suite="formats", threads=threads)
    by_format = {row["format"]: row for row in chosen if row.get("library") == OURS}
    if not {"fp32", "split-int8"} <= by_format.keys():
        return {}
    small, plain = by_format["split-int8"], by_format["fp32"]
    times, sizes = (small[key] / plain[key] for key in ("median", "bytes"))
    return {f"time {times:.2f}, bytes {sizes:.2f}:": times / sizes}


def beside_third_party(threads: int, rows: list[Row]) -> Values:
    """Return the largest ratio of our time to that of each other library."""
    worst: dict[str, tuple[float, str]] = {}
    for row in select(rows, threads=threads, role="other"):
        library = row.get("library", row["name"])
        if library not in THIRD_PARTY:
            continue
        same = select(rows, threads=threads, group=row["group"], format=row["format"])
        ours = min((r["median"] for r in same if r.get("library", r["name"]) == OURS), default=None)
        if ours is not None:
            where = f"{row['optimizer']}, {row['format']}, {row['model']}"
            value = (ours / row["median"], where)
            worst[library] = max(worst.get(library, value), value)
    return {f"{library} ({where})": value for library, (value, where) in worst.items()}


def host(rows: list[Row], name: str) -> dict[int, Row]:
    """Return the rows of a variant of the host's suite in one group, by number of tensors."""
    return {row["tensors"]: row for row in select(rows, suite="host", name=name, groups=1)}


def host_share(ours: str, other: str, rows: list[Row]) -> Values:
    """Return our time divided by torch's, for 1,000 tensors."""
    found, beside = host(rows, ours).get(1000), host(rows, other).get(1000)
    return {"1,000 tensors": found["median"] / beside["median"]} if found and beside else {}


def host_time(rows: list[Row]) -> Values:
    """Return the milliseconds of a step of 1,000 tensors, without launches and right after one."""
    found = host(rows, f"{NO_LAUNCHES}, warm").get(1000)
    return {"1,000 tensors": found["median"] * 1e3} if found else {}


def host_growth(rows: list[Row]) -> Values:
    """Return the time of 10,000 tensors divided by ten times the time of 1,000."""
    found = {name: host(rows, name) for name in (NO_LAUNCHES, OURS)}
    return {
        name: times[10_000]["median"] / (10 * times[1000]["median"])
        for name, times in found.items()
        if {1000, 10_000} <= times.keys()
    }


def host_allocations(rows: list[Row]) -> Values:
    """Return the difference in allocated tensors between steps of 10,000 and of 100 tensors."""
    found = {name: host(rows, name) for name in (NO_LAUNCHES, OURS)}
    return {
        name: times[10_000]["tensor_allocations"] - times[100]["tensor_allocations"]
        for name, times in found.items()
        if {100, 10_000} <= times.keys()
    }


def dtensors(rows: list[Row]) -> Values:
    """Return our time divided by that of torch's fused step, clipped, by number of DTensors."""
    found = {}
    for tensors in sorted({row["tensors"] for row in select(rows, suite="dtensors")}):
        chosen = select(rows, suite="dtensors", tensors=tensors)
        ours = [row["median"] for row in chosen if row["role"] == "ours"]
        theirs = [row["median"] for row in chosen if row["name"] == "torch fused"]
        if ours and theirs:
            found[f"{tensors:,}"] = ours[0] / theirs[0]
    return found


def first_step(name: str, scale: float, rows: list[Row]) -> Values:
    """Return the median time to compile in seconds, times ``scale``."""
    found = select(rows, suite="first step", name=name)
    return {row["model"]: row["median"] * scale for row in found}


def step_goals(threads: int) -> Iterator[Goal]:
    """Yield the goals that depend on the number of threads."""
    suffix = f"{threads} thread{'s' if threads > 1 else ''}"
    for model, optimizers, bound in STEPS:
        torchs = "torch's fastest" if optimizers == UNFUSED else "torch fused"
        measure = partial(beside_torch, model, optimizers, threads)
        reason = BYTES if model in ("one-50m", "gpt2-124m") else SMALL
        yield Goal(f"native / {torchs} + clip: {model}, {suffix}", bound, measure, reason)
    name = f"bf16, split, int8 / fp32: time by bytes, {suffix}"
    yield Goal(name, 1.25, partial(beside_bytes, threads), CODES)
    name = f"native / other libraries, the largest: {suffix}"
    yield Goal(name, 1.0, partial(beside_third_party, threads), NEAREST)


def goals(rows: list[Row]) -> Iterator[Goal]:
    """Yield all goals."""
    for threads in sorted({row["threads"] for row in rows if "threads" in row}, reverse=True):
        yield from step_goals(threads)
    everything = partial(host_share, OURS, "torch fused, CPU kernels")
    yield Goal("native / torch fused + clip: tensors of 16 elements", 0.15, everything, HOST)
    alone = partial(host_share, NO_LAUNCHES, "torch fused, no kernels")
    yield Goal("host without launches / torch without kernels", 0.2, alone, HOST)
    yield Goal("host without launches, warm: ms", 0.6, host_time, HOST)
    yield Goal("10,000 tensors / ten times 1,000", 1.25, host_growth, HOST)
    name = "tensors allocated, 10,000 beside 100"
    yield Goal(name, 0, host_allocations, form="{:.0f}")
    yield Goal("DTensors, native / torch fused + clip", 0.25, dtensors, HOST)
    cold = partial(first_step, "cold cache", 1)
    yield Goal("compiling at the first step, cold cache: s", 1.0, cold)
    warm = partial(first_step, "warm cache", 1e3)
    yield Goal("compiling at the first step, warm cache: ms", 50, warm, form="{:.0f}")


def link(heading: str) -> str:
    """Return a Markdown link to the section of docs/performance.md with this heading."""
    return f"[{heading}]({PAGE}#{heading.lower().replace(' ', '-')})"


def lines(rows: list[Row]) -> Iterator[str]:
    """Yield the section of the report."""
    found = [(goal, goal.measure(rows)) for goal in goals(rows)]
    found = [(goal, values) for goal, values in found if values]
    if not found:
        return
    yield "## Goals"
    yield ""
    yield "| goal | at most | measured | |"
    yield "|---|---:|---|---|"
    for goal, values in found:
        missed = any(value > goal.bound for value in values.values())
        verdict = "missed" if missed else "met"
        note = f": {link(goal.reason)}" if missed and goal.reason else ""
        measured = ", ".join(f"{name} {goal.form.format(value)}" for name, value in values.items())
        bound = goal.form.format(goal.bound)
        yield f"| {goal.name} | {bound} | {measured} | {verdict}{note} |"
    yield ""
