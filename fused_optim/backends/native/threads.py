"""The launch of a native kernel on several threads.

Threads take programs by an atomic counter until none is left, so any number of threads may run a
kernel, and the result does not depend on the assignment. The threads belong to the OpenMP library
that torch uses: its workers spin after an operation of torch, and would compete with other threads
for the cores.
"""

import ctypes
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_OPENMP = re.compile(r"(/\S*/lib(?:gomp|iomp5|omp)\b[^/\s]*\.so[^/\s]*)$", re.MULTILINE)


@cache
def _openmp_parallel() -> Callable[..., Any] | None:
    """Return ``GOMP_parallel`` of the OpenMP library that torch has loaded, or None."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for path in _torchs_first(dict.fromkeys(_OPENMP.findall(maps))):
        try:
            # RTLD_NOLOAD: the loaded library, never a second copy
            function = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


def _torchs_first(paths: Iterable[str]) -> list[str]:
    """Return the libraries sorted, torch's copy first: other packages may have loaded another."""
    package = str(Path(torch.__file__).parent)
    return sorted(paths, key=lambda path: not path.startswith(package))


class _Process:
    """The threads of this process.

    Attributes:
        is_forked: True in the child of a fork, which uses ``pool``: GNU's OpenMP hangs in a child
            whose parent has used it.
        pool: thread pool, created at the first use; None before.
    """

    is_forked = False
    pool: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    _Process.is_forked = True
    _Process.pool = None  # fork does not copy its threads


os.register_at_fork(after_in_child=_after_fork)


def run(kernel: Callable[[int], None], entry: int, launch: int, threads: int) -> None:
    """Run a kernel on ``threads`` threads, the caller among them, and wait for all.

    Args:
        kernel: machine code as a function that releases the GIL.
        entry: address of the machine code.
        launch: address of the launch words, which must stay alive until this returns.
        threads: number of threads, >= 1.
    """
    if threads == 1:
        kernel(launch)
        return
    parallel = None if _Process.is_forked else _openmp_parallel()
    if parallel is not None:
        parallel(entry, launch, threads, 0)
    else:
        _run_in_pool(kernel, launch, threads)


def _run_in_pool(kernel: Callable[[int], None], launch: int, threads: int) -> None:
    """Run a kernel on ``threads`` threads of the thread pool, and wait for all."""
    if _Process.pool is None:
        _Process.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fused_optim")
    others: list[Future[None]] = []
    try:
        others = [_Process.pool.submit(kernel, launch) for _ in range(threads - 1)]
        kernel(launch)
    finally:
        # after an interrupt too: no thread may still write to the parameters
        _wait(others)


def _wait(futures: list[Future[None]]) -> None:
    interrupt: KeyboardInterrupt | None = None
    for future in futures:
        while not future.done():
            try:
                future.exception()
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt
