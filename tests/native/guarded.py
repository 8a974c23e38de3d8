"""Run kernels on columns that begin or end at protected memory; a program of its own.

    python guarded.py LEVEL[,LEVEL...] FORMAT[,FORMAT...]|rows LIE

The columns and tables lie between pages that nothing may touch, so an access out of bounds ends the
program. What is around them in their own page must not change. The levels take
turns with the formats, but for those of EVERY_LEVEL. With LIE 1 a kernel is told of one
element, or row, more than there is, in a process for each level and format; the program prints the
signals that ended them.
"""

import ctypes
import itertools
import mmap
import os
import sys

import numpy as np
import torch
from native.kernels import Case, loaded, run, text

from fused_optim.backends.base import BucketKey
from fused_optim.backends.kernel_runner import chunk_maps
from fused_optim.backends.native.executor import GEOMETRY
from fused_optim.kernels.signatures import CommonOptions, CommonScalars

LENGTHS = [*range(1, 66), 127, 128, 4095, 4096, 4097, 8192 + 77]
EVERY_LEVEL = ("fp32", "split24-int8", "rows")  # elements of 4, 2 and 1 bytes
FEWER = [1, 33, 64, 65, 4097]  # before the first element nothing depends on the length
PAGES = 18  # of data: the longest row in float64, and more
FILL = 0xA5
NO_ACCESS = 0  # PROT_NONE
LIBC = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Memory between two protected pages."""

    def __init__(self) -> None:
        size, page = (PAGES + 2) * mmap.PAGESIZE, mmap.PAGESIZE
        self.memory = mmap.mmap(-1, size)
        whole = np.frombuffer(self.memory, np.uint8)
        self.data = whole[page:-page]
        for edge in (whole[:page], whole[-page:]):
            address = ctypes.c_void_p(edge.ctypes.data)
            assert LIBC.mprotect(address, ctypes.c_size_t(page), NO_ACCESS) == 0

    def put(self, values: np.ndarray, at_end: bool) -> int:
        """Put values at the end of the memory or its beginning; return their address."""
        raw = values.view(np.uint8).reshape(-1)
        start = len(self.data) - len(raw) if at_end else 0
        self.used = slice(start, start + len(raw))
        self.data[:] = FILL
        self.data[self.used] = raw
        return self.data.ctypes.data + start

    def check(self) -> None:
        """Check that the bytes around the values have not changed."""
        around = np.concatenate([self.data[: self.used.start], self.data[self.used.stop :]])
        assert (around == FILL).all(), "written outside the values"


def columns(key: BucketKey, numel: int) -> list[np.ndarray]:
    """Return values for every column."""
    generator = torch.Generator().manual_seed(numel)
    result = []
    for dtype, block in zip(key.dtypes, key.blocks, strict=True):
        count = -(-numel // block)
        values = torch.rand(count, generator=generator, dtype=torch.float64) * 100 + 1
        result.append(values.to(dtype).view(torch.uint8).numpy())
    return result


class Launch:
    """A launch whose columns and tables are in guarded memory."""

    def __init__(self, memory: list[Guarded], at_end: bool) -> None:
        self.memory, self.at_end, self.used = memory, at_end, 0

    def put(self, values: np.ndarray) -> int:
        """Put values into memory that this launch has not used; return their address."""
        self.used += 1
        return self.memory[self.used - 1].put(values, self.at_end)

    def elements(self, case: Case, level: str, numel: int, lie: int) -> None:
        """Run a kernel over the elements of one row."""
        key = case.key
        firsts, spans = chunk_maps([numel + lie], GEOMETRY)
        addresses = [self.put(column) for column in columns(key, numel)]
        table = self.put(np.array([[numel + lie, 5, *addresses]], np.int64))
        arguments: list[int] = [table, self.put(firsts), self.put(spans)]
        chunks = int(firsts[-1])
        if case.kernel == "norm":
            arguments += [self.put(np.zeros((chunks, 2))), chunks]
        else:
            scalars = np.full(len(CommonScalars._fields) + len(key.rule.scalars._fields), 0.125)
            scalars[0] = 0  # not skipped
            arguments.append(self.put(scalars.astype(str(key.compute)[6:])))
        if case.kernel == "reduce":
            arguments.append(self.put(np.zeros((chunks, key.rule.reduction.num_sums))))
        run(loaded(case, level), *arguments, programs=chunks)

    def begin(self, case: Case, level: str, rows: int, partials: int, lie: int) -> None:
        """Run ``prepare`` on some rows."""
        rule = case.key.rule
        counters = len(rule.scalar_state)
        count = self.put(np.full(rows * max(counters, 1), 3.0, np.float32))
        addresses = count + 4 * np.arange(rows * counters, dtype=np.int64)
        arguments = [
            self.put(np.zeros((partials, 2))),
            *([self.put(addresses)] if counters else []),
            self.put(np.zeros((rows, 2), np.int32)),
            self.put(np.full((1, len(CommonOptions._fields) + len(rule.hparams._fields)), 0.125)),
            self.put(np.ones(1, np.float32)),
            self.put(np.zeros(1, np.float32)),
            self.put(
                np.zeros((rows, len(CommonScalars._fields) + len(rule.scalars._fields)), np.float32)
            ),
            self.put(np.zeros(3)),
        ]
        programs = -(-(rows + lie) // GEOMETRY.rows)
        run(loaded(case, level), *arguments, partials, rows + lie, programs=programs)

    def finish(self, case: Case, level: str, rows: int, chunks: int, lie: int) -> None:
        """Run ``finalize`` on some rows, of ``chunks`` chunks each."""
        rule, width = case.key.rule, 2 + len(case.key.dtypes)
        sums = np.ones((rows * chunks, rule.reduction.num_sums))
        arguments = [
            self.put(np.ones((rows, width), np.int64)),
            self.put(np.arange(rows + 1, dtype=np.int64) * chunks),
            self.put(sums),
            self.put(
                np.ones((rows, len(CommonScalars._fields) + len(rule.scalars._fields)), np.float32)
            ),
        ]
        run(loaded(case, level), *arguments, programs=rows + lie)

    def check(self) -> None:
        """Check that the launch wrote to its own values alone."""
        for piece in self.memory[: self.used]:
            piece.check()


def through_elements(level: str, formats: list[str], lie: int, memory: list[Guarded]) -> None:
    """Run every kernel over elements, with every length, at both ends of the memory."""
    lengths = [*((n, True) for n in LENGTHS), *((n, False) for n in FEWER)]
    read_by_norm = set()
    for name in formats:
        for kernel, rule in (("update", "adam"), ("norm", "adam"), ("reduce", "lamb")):
            case = Case(kernel, rule, name)
            gradient = case.key.dtypes[case.key.first[1]]
            if kernel == "norm" and gradient in read_by_norm:
                continue  # it reads no other column
            read_by_norm |= {gradient} if kernel == "norm" else set()
            for numel, at_end in lengths:
                launch = Launch(memory, at_end)
                launch.elements(case, level, numel, lie)
                launch.check()


def through_rows(level: str, lie: int, memory: list[Guarded]) -> None:
    """Run the kernels over rows, with every number of rows that a program may have left."""
    for rows, at_end in itertools.product(range(1, 2 * GEOMETRY.rows + 2), (True, False)):
        for rule, partials in (("adam", 1), ("asgd", 64), ("sgd", 65)):
            launch = Launch(memory, at_end)
            launch.begin(Case("prepare", rule, "fp32"), level, rows, partials, lie)
            launch.check()
        for chunks in (1, 63, 64, 65):
            launch = Launch(memory, at_end)
            launch.finish(Case("finalize", "lamb", "fp32"), level, rows, chunks, lie)
            launch.check()


def through(level: str, formats: list[str], lie: int, memory: list[Guarded]) -> None:
    """Run the kernels of the formats, or those over rows."""
    if "rows" in formats:
        through_rows(level, lie, memory)
    through_elements(level, [name for name in formats if name != "rows"], lie, memory)


def signal_of(level: str, name: str, memory: list[Guarded]) -> int:
    """Return the signal that ends a process whose kernel is told of too much; 0 without one."""
    # the front end's work, which the processes of all levels share
    text(Case("prepare", "adam", "fp32") if name == "rows" else Case("update", "adam", name))
    process = os.fork()
    if process == 0:
        through(level, [name], 1, memory)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(process, 0)[1])


def main(levels: str, formats: str, lie: str) -> None:
    """Run the kernels, and print that nothing was touched, or the signals."""
    memory = [Guarded() for _ in range(16)]
    every, names = levels.split(","), formats.split(",")
    for turn, level in enumerate(every):
        if lie == "0":
            own = [n for i, n in enumerate(names) if i % len(every) == turn or n in EVERY_LEVEL]
            through(level, own, 0, memory)
            continue
        for name in names:
            sys.stdout.write(f"{level} {name} {signal_of(level, name, memory)}\n")
            sys.stdout.flush()  # or the next process has it too
    if lie == "0":
        sys.stdout.write("nothing was touched\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
