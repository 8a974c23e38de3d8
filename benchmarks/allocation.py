"""Measurement of the memory that a function allocates."""

import tracemalloc
from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def tensor_allocations(run: Callable[[], object]) -> list[int]:
    """Return the bytes of each allocation of CPU memory by tensors, in order; < 0 for a release."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak(allocations: list[int]) -> int:
    """Return the peak memory in bytes, relative to the start, from the sizes of allocations."""
    return max(accumulate(allocations, initial=0))


def python_peak(run: Callable[[], object]) -> int:
    """Return the peak memory of Python objects in bytes, relative to the start of a second run."""
    tracemalloc.start()
    try:
        run()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
