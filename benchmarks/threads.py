"""Control of the number of threads of every OpenMP library in this process.

torch sets it for its own library only; other packages bring copies of theirs.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

_OPENMP = re.compile(r"(/\S*/lib(?:gomp|iomp5|omp)\b[^/\s]*\.so[^/\s]*)$", re.MULTILINE)


def openmp_libraries() -> list[ctypes.CDLL]:
    """Return the OpenMP libraries that this process has loaded; on Linux only."""
    maps = Path("/proc/self/maps")
    paths = _OPENMP.findall(maps.read_text()) if maps.exists() else []
    # RTLD_NOLOAD: the loaded library, and no other copy of it
    return [ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW) for path in dict.fromkeys(paths)]


def set_threads(count: int) -> None:
    """Let torch and every OpenMP library compute with ``count`` threads."""
    for library in openmp_libraries():
        library.omp_set_num_threads(count)
    torch.set_num_threads(count)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)
