"""The shared memory of some blocks, with detection of data races."""

from typing import NamedTuple

import numpy as np

Array = np.ndarray

# Codes of the last access to a granule since the block's last barrier. From 0: the number of a
# thread. From ``threads``: that plus the number of a warp whose threads accessed it. From
# ``2 * threads``: that plus the number of a warp that has met at a barrier since.
_NOBODY = -1
_SEVERAL_WARPS = -2


class BadSharedAccess(Exception):
    """An access that is out of bounds, misaligned, a race or a read of unwritten memory.

    Args:
        kind: description of the error.
        at: bool per access, True if it is at fault.
    """

    def __init__(self, kind: str, at: Array) -> None:
        super().__init__(kind)
        self.kind, self.at = kind, at


class Copy(NamedTuple):
    """An unfinished asynchronous copy to shared memory.

    Attributes:
        offsets: offsets of the destinations, int64 [blocks, threads].
        data: copied bytes, uint8 [blocks, threads, bytes].
        chosen: True for threads that copy, bool [blocks, threads].
    """

    offsets: Array
    data: Array
    chosen: Array


class SharedMemory:
    """The shared memory of some blocks.

    A thread may read or overwrite what another thread accessed only after a barrier of the block,
    or of their warp if they are in one warp.

    Args:
        blocks: number of blocks.
        size: bytes of shared memory of a block.
        threads: number of threads of a block.
        granule: bytes of the narrowest access.
    """

    def __init__(self, blocks: int, size: int, threads: int, granule: int) -> None:
        self._size, self._threads, self._granule = size, threads, granule
        padded = -(-size // 16) * 16
        self._data = np.zeros((blocks, padded), np.uint8)
        granules = (blocks, padded // granule)
        self._written = np.zeros(granules, bool)
        self._writer = np.full(granules, _NOBODY, np.int16)
        self._reader = np.full(granules, _NOBODY, np.int16)

    def select(self, rows: Array) -> "SharedMemory":
        """Return the shared memory of some of these blocks."""
        part = SharedMemory(0, self._size, self._threads, self._granule)
        part._data, part._written = self._data[rows], self._written[rows]
        part._writer, part._reader = self._writer[rows], self._reader[rows]
        return part

    def load(self, rows: Array, threads: Array, offsets: Array, dtype: np.dtype, n: int) -> Array:
        """Read n consecutive elements for each thread: an array [threads, n].

        Raises:
            BadSharedAccess: misaligned, out of bounds, not written, or a race.
        """
        row, granules = self._granules(rows, offsets, n * dtype.itemsize)
        self._refuse("read of unwritten shared memory", ~self._written[row, granules])
        mine = threads[:, None].astype(np.int16)
        race = self._conflicts(self._writer[row, granules], mine)
        self._refuse("race: read of another thread's write without a barrier", race)
        self._note_readers(row, granules, mine)
        return self._data.view(dtype)[row, self._elements(offsets, dtype, n)]

    def store(self, rows: Array, threads: Array, offsets: Array, values: Array) -> None:
        """Write an array [threads, n] of consecutive elements of each thread.

        Raises:
            BadSharedAccess: misaligned, out of bounds, or a race.
        """
        n, dtype = values.shape[1], values.dtype
        row, granules = self._granules(rows, offsets, n * dtype.itemsize)
        mine = threads[:, None].astype(np.int16)
        race = self._conflicts(self._writer[row, granules], mine)
        race |= self._conflicts(self._reader[row, granules], mine)
        self._refuse("race: write over another thread's access without a barrier", race)
        self._writer[row, granules] = mine
        self._written[row, granules] = True
        data, elements = self._data.view(dtype), self._elements(offsets, dtype, n)
        data[row, elements] = values
        # Triton lets several threads write one value to one address, which is no race
        unsigned = np.dtype(f"u{dtype.itemsize}")
        lost = data[row, elements].view(unsigned) != values.view(unsigned)
        self._refuse("race: two threads write one address of shared memory", lost)

    def barrier(self, rows: Array) -> None:
        """Synchronize all threads of these blocks."""
        self._writer[rows] = _NOBODY
        self._reader[rows] = _NOBODY

    def warp_barrier(self) -> None:
        """Synchronize the threads of every warp."""
        for last in (self._writer, self._reader):
            thread = (last >= 0) & (last < self._threads)
            last[thread] = self._synchronised(last[thread] // 32)
            together = (last >= self._threads) & (last < 2 * self._threads)
            last[together] = self._synchronised(last[together] - self._threads)

    def _synchronised(self, warp: Array) -> Array:
        return (2 * self._threads + warp).astype(np.int16)

    def _granules(self, rows: Array, offsets: Array, size: int) -> tuple[Array, Array]:
        bad = (offsets < 0) | (offsets + size > self._size)
        self._refuse(f"access of {size} bytes out of bounds of shared memory", bad)
        self._refuse(f"misaligned access of {size} bytes of shared memory", offsets % size != 0)
        first = offsets[:, None] // self._granule
        return rows[:, None], first + np.arange(size // self._granule)

    def _elements(self, offsets: Array, dtype: np.dtype, n: int) -> Array:
        return offsets[:, None] // dtype.itemsize + np.arange(n)

    def _refuse(self, kind: str, bad: Array) -> None:
        if bad.any():
            raise BadSharedAccess(kind, bad if bad.ndim == 1 else bad.any(axis=1))

    def _conflicts(self, last: Array, mine: Array) -> Array:
        allowed = (last == _NOBODY) | (last == mine) | (last == self._synchronised(mine // 32))
        return ~allowed

    def _note_readers(self, row: Array, granules: Array, mine: Array) -> None:
        last, warp = self._reader[row, granules], mine // 32
        together = np.broadcast_to((self._threads + warp).astype(np.int16), last.shape)
        fresh = (last == _NOBODY) | (last == mine) | (last == self._synchronised(warp))
        one_warp = (last == together) | ((last >= 0) & (last // 32 == warp))
        one_warp &= last < 2 * self._threads
        code = np.where(one_warp, together, np.int16(_SEVERAL_WARPS))
        code = np.where(fresh, mine, code)
        self._reader[row, granules] = code
        # where several threads read one granule at once, only one thread's code was kept
        row, granules = np.broadcast_to(row, last.shape), granules
        lost = self._reader[row, granules] != code
        if lost.any():
            joint = np.where(code == _SEVERAL_WARPS, code, together)
            self._reader[row[lost], granules[lost]] = joint[lost]
            kept = self._reader[row, granules]
            strange = (kept != code) & ((kept != together) | (code == _SEVERAL_WARPS))
            self._reader[row[strange], granules[strange]] = _SEVERAL_WARPS
