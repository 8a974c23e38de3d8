"""What the project has set itself, beside what was measured: a part of the report.

A goal that is missed says why, and what was tried.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

Row = dict[str, Any]

FUSED = ("AdamW", "Adam", "SGD", "Adagrad")  # torch has fused kernels for these on the CPU
UNFUSED = ("RMSprop", "NAdam", "RAdam", "Adamax")
HOST_OURS, HOST_THEIRS = "fused_optim, no launches", "torch fused, no kernels"

HOST = (
    "Each step reads type, shape, strides and address of five tensors a parameter (parameter, "
    "gradient, two states, count), for whatever was replaced or moved since the last step would be "
    "written through a stale address. That is 25,000 cache lines for 1,000 parameters, and a call "
    "into torch for each address. Tried: all facts of 256 tensors in one call of torch's own "
    "guards, in blocks that stay in a core's cache (from 57 ms for a full step); addresses "
    "compared as one array; options compared as objects; kernels launched past Triton's binder. "
    "Not done: to believe that a tensor object which is the same has the memory that it had; "
    "`.data = ...` breaks that, and the step would corrupt memory. torch without its kernels is "
    "a lower bound of what torch does on the host."
)
TINY = (
    "Rows of less than 8,192 elements are copied together and back, seven copies a parameter for "
    "AdamW at 0.3 to 0.7 us each, which is what torch's fused step takes for all of its work. "
    "Tried: `torch.cat` and `split` (twice as slow), copies into views that are kept (what is "
    "there now), foreach operations on the rows themselves (1.7 us for each operation and row). "
    "Not done: states as views of one buffer, which other libraries refuse to save."
)
REFERENCE = (
    "It is the definition, about 22 operations of torch for AdamW, none of which may be contracted "
    "into another, and each passes over the elements once; torch's fused kernel is one pass. "
    "Tried: pieces of 8,192 to 262,144 elements. torch gives a thread no fewer than 32,768, and "
    "with so many the temporaries leave a core's second cache: two threads are 1.3 times as fast "
    "as one with small pieces. There are 65,536 for each thread now, and the norm is no longer a "
    "`dot`, which waited for threads of another library; together twice as fast as before. "
    "`backend='auto'` takes the compiled backend where there are 16 M elements or more."
)
COMPILED = (
    "Two passes, of which the first reads the gradients for the norm: 32 bytes a parameter for "
    "AdamW where torch moves 40, so 0.80 is the least. Where a list is not one tensor, each tensor "
    "is a call of the program and of the norm, with its threads woken up, and small ones are the "
    "reference's."
)

GROUPS = (
    "For a group the step compares some 20 options as objects, a microsecond or two; beyond that a "
    "difference in either direction is the machine's."
)


class Goal(NamedTuple):
    """One goal.

    Attributes:
        name: what is measured.
        bound: the largest value that meets it.
        measure: from the rows of results to values by name; empty where nothing was measured.
        reason: why it may be missed, and what was tried.
        form: how a value is written.
    """

    name: str
    bound: float
    measure: Callable[[list[Row]], dict[str, float]]
    reason: str
    form: str = "{:.2f}"


def host(rows: Iterable[Row], name: str, groups: int) -> dict[int, Row]:
    """The rows of a variant of the host's suite, by number of tensors."""
    return {
        row["tensors"]: row
        for row in rows
        if row["suite"] == "host" and (row["name"], row["groups"]) == (name, groups)
    }


def host_time(rows: list[Row]) -> dict[str, float]:
    """Milliseconds of a step of 1,000 tensors."""
    found = host(rows, HOST_OURS, 1).get(1000)
    return {"1 group": found["median"] * 1e3} if found else {}


def host_share(rows: list[Row]) -> dict[str, float]:
    """Ours as a part of torch's."""
    ours = host(rows, HOST_OURS, 1).get(1000)
    peers = {
        label: host(rows, name, 1).get(1000)
        for label, name in (("of no kernels", HOST_THEIRS), ("of all", "torch fused, CPU kernels"))
    }
    if ours is None:
        return {}
    return {label: ours["median"] / peer["median"] for label, peer in peers.items() if peer}


def host_slope(rows: list[Row]) -> dict[str, float]:
    """Microseconds for each further tensor."""
    from benchmarks.report import slope

    found = list(host(rows, HOST_OURS, 1).values())
    return {"1 group": slope(found) * 1e6} if len(found) > 1 else {}


def host_groups(rows: list[Row]) -> dict[str, float]:
    """A step of many groups beside that of one."""
    one = host(rows, HOST_OURS, 1).get(1000)
    found = {f"{n} groups": host(rows, HOST_OURS, n).get(1000) for n in (3, 100)}
    return {name: row["median"] / one["median"] for name, row in found.items() if row and one}


def host_allocations(rows: list[Row]) -> dict[str, float]:
    """How many tensors more a step of 10,000 allocates than one of 100."""
    found = host(rows, HOST_OURS, 1)
    if not {100, 10_000} <= set(found):
        return {}
    return {
        "1 group": found[10_000]["tensor_allocations"] - found[100]["tensor_allocations"],
    }


def beside_torch(
    backend: str, model: str, optimizers: Iterable[str], fused: bool
) -> Callable[[list[Row]], dict[str, float]]:
    """Ours as a part of torch's fused step, or of torch's fastest, with clipping."""

    def measure(rows: list[Row]) -> dict[str, float]:
        found = {}
        for optimizer in optimizers:
            key = ("step", model, optimizer, "fp32", True)
            names = ("suite", "model", "optimizer", "format", "clip")
            times = {
                row["name"]: row["median"]
                for row in rows
                if tuple(row.get(name) for name in names) == key
            }
            ours = times.get(f"fused_optim {backend}")
            theirs = [
                time
                for name, time in times.items()
                if name == "torch fused" or (not fused and name.startswith("torch "))
            ]
            if ours is not None and theirs:
                found[optimizer] = ours / min(theirs)
        return found

    return measure


def goals() -> Iterator[Goal]:
    """All of them."""
    yield Goal("host, 1,000 tensors: ms", 0.4, host_time, HOST)
    yield Goal("host, 1,000 tensors: part of torch's", 1 / 15, host_share, HOST)
    yield Goal("host: µs for each further tensor", 0.4, host_slope, HOST)
    yield Goal("host, 1,000 tensors: beside 1 group", 1.1, host_groups, GROUPS)
    yield Goal(
        "host: further allocations from 100 to 10,000 tensors", 0, host_allocations, "", "{:.0f}"
    )
    # torch has fused some; of the others its fastest counts
    sides = (("torch fused", FUSED, True), ("torch's fastest", UNFUSED, False))
    bounds = {"compiled": (0.85, 0.25, COMPILED), "reference": (2.2, 1.0, REFERENCE)}
    for model in ("one-50m", "gpt2-124m", "tiny-1000"):
        for backend, (*own, reason) in bounds.items():
            for bound, (rival, names, fused) in zip(own, sides, strict=True):
                measure = beside_torch(backend, model, names, fused)
                name = f"{backend} / {rival} + clip: {model}"
                if model == "tiny-1000":  # never slower, whatever the backend
                    yield Goal(name, 1.0, measure, TINY)
                else:
                    yield Goal(name, bound, measure, reason)


def lines(rows: list[Row]) -> Iterator[str]:
    """The section of the report."""
    found = [(goal, goal.measure(rows)) for goal in goals()]
    found = [(goal, values) for goal, values in found if values]
    if not found:
        return
    reasons: dict[str, int] = {}
    yield "### Goals"
    yield ""
    yield "| goal | at most | measured | |"
    yield "|---|---:|---|---|"
    for goal, values in found:
        missed = any(value > goal.bound for value in values.values())
        note = ""
        if missed and goal.reason:
            note = f" ({reasons.setdefault(goal.reason, len(reasons) + 1)})"
        measured = ", ".join(f"{name} {goal.form.format(value)}" for name, value in values.items())
        bound = goal.form.format(goal.bound)
        yield f"| {goal.name} | {bound} | {measured} | {'missed' if missed else 'met'}{note} |"
    yield ""
    for reason, number in reasons.items():
        yield f"{number}. {reason}"
    yield ""
