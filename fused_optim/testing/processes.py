"""Run checks in several processes at once: most of their time is spent in compiling kernels."""

import contextlib
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
    others = {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_process
    )
    try:
        with _interrupts_ignored():  # the first submissions start the processes
            running = [pool.submit(_run_group, group, settings) for group in groups]
        for group, future in zip(groups, running, strict=True):
            yield from _await_results(group, future)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in {*multiprocessing.active_children()} - others:
            process.terminate()  # it has nothing more to do, or nobody waits for it after Ctrl-C


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore SIGINT, as processes that are started do from then on: Ctrl-C is for this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_process() -> None:
    torch.set_num_threads(1)


def _run_group(checks: Sequence[Check], settings: Settings) -> list[Result]:
    return list(run_checks(checks, settings))


def _await_results(checks: Sequence[Check], future: "Future[list[Result]]") -> list[Result]:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "a process of the checks died: repeat them with --processes 1 to see which"
        return [Result(check, "failed", message=message) for check in checks]
