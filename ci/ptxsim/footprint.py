"""Record of the accesses of one launch, which finds results that depend on the thread order."""

from typing import NamedTuple

import numpy as np

Array = np.ndarray

# most runs of accesses, 40 bytes each, that are kept before those of a block are merged
_KEPT = 1 << 20


class Access(NamedTuple):
    """Runs of accesses by consecutive threads of one block to consecutive addresses, as columns.

    Thread ``thread + k`` accesses ``size`` bytes at ``start + k * size``, below ``end``.
    Threads are numbered through the whole launch.
    """

    start: Array
    end: Array
    size: Array
    thread: Array
    line: Array

    def at(self, index: Array | int) -> "Access":
        """Return some of the runs, or one."""
        return Access(*[column[index] for column in self])

    def thread_at(self, address: Array) -> Array:
        """Return the thread that accesses an address of the run."""
        return self.thread + (address - self.start) // self.size


class Conflict(NamedTuple):
    """Two accesses to one address in undefined order."""

    kind: str
    address: int
    thread: int
    line: int
    other_thread: int
    other_line: int


def _join(runs: list[Access]) -> Access:
    if not runs:
        return Access(*[np.empty(0, np.int64)] * 5)
    joined = Access(*[np.concatenate(columns) for columns in zip(*runs, strict=True)])
    return joined.at(np.argsort(joined.start, kind="stable"))


class Footprint:
    """The reads and writes of one launch.

    Beyond ``_KEPT`` runs those of a block are merged: a conflict may then be attributed to another
    line and thread of the right block.

    Args:
        threads: threads of a block, a power of two.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._reads: list[Access] = []
        self._writes: list[Access] = []
        self._settled: tuple[list[Access], list[Access]] = ([], [])
        self._kept = 0

    def read(self, addresses: Array, size: int, threads: Array, line: int) -> None:
        """Record that each of these threads, in ascending order, reads at its address."""
        self._reads.append(self._runs(addresses, size, threads, line))

    def write(self, addresses: Array, size: int, threads: Array, line: int) -> None:
        """Record that each of these threads, in ascending order, writes at its address."""
        self._writes.append(self._runs(addresses, size, threads, line))

    def settle(self) -> Conflict | None:
        """Check the writes since the last call for overlaps, and compress the record."""
        writes, reads = _join(self._writes), _join(self._reads)
        self._writes, self._reads = [], []
        for done, new in zip(self._settled, (reads, writes), strict=True):
            self._kept += len(new.start)
            done.append(new if self._kept < _KEPT else self._merge(new))
        return self._first_overlap(writes)

    def check(self) -> Conflict | None:
        """Check all settled accesses: no block may access what another one writes."""
        reads, writes = map(_join, self._settled)
        return self._first_overlap(writes) or self._first_foreign_read(reads, writes)

    def _runs(self, addresses: Array, size: int, threads: Array, line: int) -> Access:
        ends = addresses[:-1] + size != addresses[1:]
        ends |= threads[:-1] + 1 != threads[1:]
        ends |= threads[1:] & (self._threads - 1) == 0
        last = np.append(np.flatnonzero(ends), len(addresses) - 1)
        first = np.append(0, last[:-1] + 1)
        same = np.ones(len(first), np.int64)
        return Access(
            addresses[first], addresses[last] + size, size * same, threads[first], line * same
        )

    def _merge(self, runs: Access) -> Access:
        """Join runs of one block that touch or overlap, as if its first thread had made them."""
        block = runs.thread // self._threads
        order = np.lexsort((runs.start, block))
        runs, block = runs.at(order), block[order]
        if not len(block):
            return runs
        other_block = block[1:] != block[:-1]
        # with each block in a range of its own, one running maximum serves them all
        base = np.append(0, np.cumsum(other_block)) << 47
        reach = np.maximum.accumulate(runs.end + base) - base
        fresh = np.append(True, other_block | (runs.start[1:] > reach[:-1]))
        first = np.flatnonzero(fresh)
        last = np.append(first[1:] - 1, len(block) - 1)
        merged = runs.at(first)
        return merged._replace(end=reach[last], size=reach[last] - merged.start)

    def _first_overlap(self, writes: Access) -> Conflict | None:
        """Find two different threads that write one address."""
        if not len(writes.start):
            return None
        longest = _position_of_running_maximum(writes.end)
        suspects = np.flatnonzero(writes.start[1:] < writes.end[longest[:-1]]) + 1
        for index in suspects:
            a, b = writes.at(longest[index - 1]), writes.at(index)
            shared = np.arange(b.start, min(a.end, b.end))
            other = shared[a.thread_at(shared) != b.thread_at(shared)]
            if len(other):
                return _conflict("two threads write one address", other[0], b, a)
        return None

    def _first_foreign_read(self, reads: Access, writes: Access) -> Conflict | None:
        """Find a block that reads what another block writes."""
        if not len(writes.start):
            return None
        owner, reader = writes.thread // self._threads, reads.thread // self._threads
        changes = np.append(0, np.cumsum(owner[1:] != owner[:-1]))
        # one thread's writes may lie within each other
        first = np.searchsorted(np.maximum.accumulate(writes.end), reads.start, "right")
        last = np.searchsorted(writes.start, reads.end, "left") - 1
        hit = np.flatnonzero(first <= last)
        first, last, reader = first[hit], last[hit], reader[hit]
        own = (owner[first] == reader) & (changes[first] == changes[last])
        for index in np.flatnonzero(~own)[:1]:
            read, between = reads.at(hit[index]), slice(first[index], last[index] + 1)
            foreign = np.flatnonzero(owner[between] != reader[index])[0]
            write = writes.at(first[index] + foreign)
            address = max(read.start, write.start)
            return _conflict("one block reads what another writes", address, read, write)
        return None


def _conflict(kind: str, address: int, access: Access, other: Access) -> Conflict:
    return Conflict(
        kind,
        int(address),
        int(access.thread_at(address)),
        int(access.line),
        int(other.thread_at(address)),
        int(other.line),
    )


def _position_of_running_maximum(values: Array) -> Array:
    highest = np.maximum.accumulate(values)
    position = np.where(values == highest, np.arange(len(values)), 0)
    return np.maximum.accumulate(position)
