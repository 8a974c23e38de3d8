"""Timing of several variants in one pytest-benchmark test, in interleaved rounds.

In each round the variants run in random order, each run a round of ``benchmark.pedantic``, so what
slows the machine down for a while slows all of them down. Before a run the caches are filled with
other data, as the forward and backward passes do between two steps.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.stats import Stats

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
MIN_RUNS, MAX_RUNS = 3, 60  # of a variant


@dataclass
class Variant:
    """A function that is timed in interleaved rounds.

    Attributes:
        name: label in the results.
        role: ``"ours"``, ``"other"`` or ``"roofline"``.
        run: timed function without arguments.
        facts: further columns of the results; ``"bytes"`` is the traffic of one run, by formula.
        prepare: function called before each run, not timed.
    """

    name: str
    role: str
    run: Callable[[], object]
    facts: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[], object] = lambda: None


class Instant:
    """A point in the work of the device; the difference of two is in seconds."""

    def __init__(self) -> None:
        self.event = torch.get_device_module(DEVICE).Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: "Instant") -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


CLOCK: Callable[[], Any] = time.perf_counter if DEVICE.type == "cpu" else Instant


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def last_cache() -> int:
    """Return the size of the largest cache in bytes; 64 MiB if it is unknown."""
    if DEVICE.type == "cuda":
        return int(torch.cuda.get_device_properties(DEVICE).L2_cache_size)
    if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names and os.sysconf("SC_LEVEL3_CACHE_SIZE") > 0:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE")
    return 1 << 26


class Roofline:
    """Memory bandwidth, measured by a copy and a triad over buffers larger than any cache."""

    def __init__(self, smoke: bool) -> None:
        elements = 1 << 10 if smoke else max(1 << 24, last_cache())  # of 4 bytes: 4 caches
        self.a, self.b = (torch.ones(elements, device=DEVICE) for _ in range(2))

    def evict(self) -> None:
        """Fill the caches with clean lines; dirty ones would be written back in timed work."""
        self.a.sum()

    def variants(self) -> list[Variant]:
        """Return the copy and the triad, with the bytes that each moves."""
        size = self.a.nbytes
        return [
            # one buffer is read, one is written
            Variant("copy", "roofline", lambda: self.a.copy_(self.b), {"bytes": 2 * size}),
            # two are read, one of them is written: in place, as optimizers write; a CPU reads what
            # it overwrites besides, which would count as slow memory
            Variant(
                "triad", "roofline", lambda: self.b.add_(self.a, alpha=1e-9), {"bytes": 3 * size}
            ),
        ]


def seconds_of(variant: Variant) -> float:
    """Measure the wall time of one run in seconds, including the device's work."""
    variant.prepare()
    synchronize()
    start = time.perf_counter()
    variant.run()
    synchronize()
    return time.perf_counter() - start


def runs_of(estimates: Sequence[float], budget: float) -> list[int]:
    """Return how often each variant runs: all take about equally long, within ``budget`` seconds.

    Args:
        estimates: seconds of one run of each variant.
        budget: seconds for all of them; with 0 each runs once.
    """
    share = budget / len(estimates)
    least = MIN_RUNS if budget else 1
    return [max(least, min(MAX_RUNS, int(share / seconds))) for seconds in estimates]


def interleave(runs: Sequence[int], seed: int = 0) -> list[int]:
    """Return indices of variants, each as often as ``runs`` says.

    The order is random within a round, and a variant with fewer runs is spread over all rounds.
    """
    generator = random.Random(seed)
    rounds = max(runs)
    order: list[int] = []
    for k in range(rounds):
        present = [i for i, n in enumerate(runs) if (k + 1) * n // rounds > k * n // rounds]
        order += generator.sample(present, len(present))
    return order


class Stopwatch:
    """A stand-in for pytest-benchmark's fixture, with the members that :func:`compare` uses.

    Args:
        on_run: called after each run with the number of runs done, and of all runs.

    Attributes:
        disabled: False; see :func:`compare`.
        extra_info: facts of the comparison, and durations.
        stats: has the durations as ``stats.stats.data``.
    """

    def __init__(self, on_run: Callable[[int, int], object]) -> None:
        self.on_run = on_run
        self.disabled = False
        self.extra_info: dict[str, Any] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(
        self,
        run: Callable[..., object],
        setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
        rounds: int,
    ) -> None:
        """Time ``rounds`` runs, each with the arguments that ``setup`` returns before it."""
        for done in range(1, rounds + 1):
            args, kwargs = setup()
            start = CLOCK()
            run(*args, **kwargs)
            self.stats.stats.data.append(CLOCK() - start)
            self.on_run(done, rounds)


def compare(
    benchmark: BenchmarkFixture | Stopwatch,
    variants: Sequence[Variant],
    evict: Callable[[], object],
    budget: float,
    rounds: int | None = None,
) -> None:
    """Time ``variants`` in interleaved rounds; put the durations into ``benchmark.extra_info``.

    Args:
        benchmark: fixture of pytest-benchmark, or a stopwatch; if it is disabled, every variant
            runs once.
        variants: functions to compare; each has run before, so states and kernels exist.
        evict: function that fills the caches with other data.
        budget: total seconds, exceeded if ``MIN_RUNS`` runs of each take longer; 0 for one run.
        rounds: number of runs of each variant, whatever the budget; None to follow the budget.
    """
    estimates = [seconds_of(variant) for variant in variants]
    if benchmark.disabled:
        benchmark.pedantic(synchronize)
        return
    runs = runs_of(estimates, budget) if rounds is None else [rounds] * len(variants)
    order = interleave(runs)
    upcoming = iter(order)

    def next_run() -> tuple[tuple[Variant], dict[str, Any]]:
        variant = variants[next(upcoming)]
        variant.prepare()
        evict()
        return (variant,), {}

    benchmark.pedantic(lambda variant: variant.run(), setup=next_run, rounds=len(order))
    durations: list[list[float]] = [[] for _ in variants]
    for index, seconds in zip(order, benchmark.stats.stats.data, strict=True):
        durations[index].append(seconds)
    record(benchmark, variants, durations)


def record(
    benchmark: BenchmarkFixture | Stopwatch,
    variants: Sequence[Variant],
    durations: Sequence[list[float]],
) -> None:
    """Put variants and their durations in seconds where :func:`rows_of` finds them."""
    benchmark.extra_info["variants"] = [
        {"name": v.name, "role": v.role, **v.facts, "durations": seconds}
        for v, seconds in zip(variants, durations, strict=True)
    ]


def rows_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a result for each variant of a test, in pytest-benchmark's own form.

    Args:
        entry: a test's result, with its statistics under ``"stats"`` or, as for the table on the
            terminal, among the other keys.
    """
    shared = dict(entry["extra_info"])
    rows = []
    for variant in shared.pop("variants", []):
        stats = Stats()
        stats.data = list(variant["durations"])
        facts = {k: v for k, v in variant.items() if k not in ("name", "durations")}
        names = {
            "group": entry["name"],
            "name": variant["name"],
            "fullname": f"{entry['fullname']} {variant['name']}",
            "extra_info": {**shared, **facts},
        }
        found = {**stats.as_dict(), "iterations": 1}
        rows.append({**entry, **names, **({"stats": found} if "stats" in entry else found)})
    return rows or [entry]
