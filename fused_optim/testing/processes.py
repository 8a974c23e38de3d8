"""Run checks in several processes at once: most of their time is spent in compiling kernels."""

import itertools
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from fused_optim.testing.checks import Result, Settings, run_checks
from fused_optim.testing.selection import Check

WORTHWHILE = 64  # checks for one process more: it imports torch, which takes seconds


def choose_processes(checks: Sequence[Check], settings: Settings) -> int:
    """Return how many processes to use: one for an accelerator, else at most torch's threads."""
    if settings.device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), len(checks) // WORTHWHILE))


def run_in_processes(
    checks: Sequence[Check], settings: Settings, processes: int
) -> Iterator[Result]:
    """Run the checks in ``processes`` processes, and yield the results in the order of the checks.

    A process that dies, as of a memory fault, fails all checks that have no result yet.
    """
    if processes == 1:
        yield from run_checks(checks, settings)
        return
    # the checks of a variant share their kernels
    groups = [list(group) for _, group in itertools.groupby(checks, lambda one: one.variant)]
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_process
    )
    try:
        running = [pool.submit(_run_group, group, settings) for group in groups]
        for group, future in zip(groups, running, strict=True):
            yield from _await_results(group, future)
    finally:
        # after Ctrl-C only the groups that run are finished
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    torch.set_num_threads(1)


def _run_group(checks: Sequence[Check], settings: Settings) -> list[Result]:
    return list(run_checks(checks, settings))


def _await_results(checks: Sequence[Check], future: "Future[list[Result]]") -> list[Result]:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "a process of the checks died: repeat them with --processes 1 to see which"
        return [Result(check, "failed", message=message) for check in checks]
