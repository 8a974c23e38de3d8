"""Timing several variants against each other, through one pytest-benchmark test.

The variants take turns in random order, each turn a round of ``benchmark.pedantic``; what slows the
machine for a while slows them all. Before a turn the caches are filled with other data, as forward
and backward do between two steps.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.stats import Stats

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
LEAST, MOST = 3, 60  # turns of a variant


@dataclass
class Variant:
    """One of those that are timed side by side.

    Attributes:
        name: in the results.
        role: ``"ours"``, ``"rival"`` or ``"roofline"``.
        run: what is timed.
        facts: what else goes into the results; ``"bytes"`` is what one run moves, by formula.
        prepare: untimed, before each turn.
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
    """Bytes of the largest cache; 64 MiB where nobody says."""
    if DEVICE.type == "cuda":
        return int(torch.cuda.get_device_properties(DEVICE).L2_cache_size)
    if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names and os.sysconf("SC_LEVEL3_CACHE_SIZE") > 0:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE")
    return 1 << 26


class Roofline:
    """What the memory can do: a copy and a triad, over buffers that no cache holds."""

    def __init__(self, smoke: bool) -> None:
        elements = 1 << 10 if smoke else max(1 << 24, last_cache())  # of 4 bytes: 4 caches
        self.a, self.b = (torch.ones(elements, device=DEVICE) for _ in range(2))

    def evict(self) -> None:
        """Fill the caches with clean lines; dirty ones would be written back in timed work."""
        self.a.sum()

    def variants(self) -> list[Variant]:
        """Each with its bytes."""
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
    """Wall time of one run, with the device's work."""
    variant.prepare()
    synchronize()
    start = time.perf_counter()
    variant.run()
    synchronize()
    return time.perf_counter() - start


def turns_of(estimates: Sequence[float], budget: float) -> list[int]:
    """How often each variant runs: all take about equally long, within ``budget`` seconds."""
    share = budget / len(estimates)
    least = LEAST if budget else 1
    return [max(least, min(MOST, int(share / seconds))) for seconds in estimates]


def in_turns(turns: Sequence[int], seed: int = 0) -> list[int]:
    """Indices of variants: random order in each lap, and rarer ones spread over all laps."""
    generator = random.Random(seed)
    laps = max(turns)
    order: list[int] = []
    for lap in range(laps):
        lap_of = [i for i, n in enumerate(turns) if (lap + 1) * n // laps > lap * n // laps]
        order += generator.sample(lap_of, len(lap_of))
    return order


def race(
    benchmark: BenchmarkFixture,
    variants: Sequence[Variant],
    evict: Callable[[], object],
    budget: float,
) -> None:
    """Time ``variants`` by turns; leaves each one's durations in ``benchmark.extra_info``.

    Args:
        benchmark: of pytest-benchmark; if it is disabled, every variant runs once and that is all.
        variants: to be compared; each has run before, so that states and kernels are there.
        evict: fills the caches with something else.
        budget: seconds for all of it, as far as ``LEAST`` turns of each allow; 0 for one turn.
    """
    estimates = [seconds_of(variant) for variant in variants]
    if benchmark.disabled:
        benchmark.pedantic(synchronize)
        return
    order = in_turns(turns_of(estimates, budget))
    upcoming = iter(order)

    def next_turn() -> tuple[tuple[Variant], dict[str, Any]]:
        variant = variants[next(upcoming)]
        variant.prepare()
        evict()
        return (variant,), {}

    benchmark.pedantic(lambda variant: variant.run(), setup=next_turn, rounds=len(order))
    durations: list[list[float]] = [[] for _ in variants]
    for index, seconds in zip(order, benchmark.stats.stats.data, strict=True):
        durations[index].append(seconds)
    benchmark.extra_info["variants"] = [
        {"name": v.name, "role": v.role, **v.facts, "durations": seconds}
        for v, seconds in zip(variants, durations, strict=True)
    ]


def rows_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """One result for each variant of a test, in pytest-benchmark's own form.

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
