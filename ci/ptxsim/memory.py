"""Device memory: ranges of this process's memory, where every access is checked."""

import ctypes
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Ranges = Iterable[tuple[int, int]]

# numpy takes address 0 for a request to allocate; user space on 64-bit systems ends at 2 ** 47
_BASE = 4096
_SIZE = (1 << 47) - 2 * _BASE
_ELEMENT = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    16: np.dtype(np.complex128),  # numpy moves these as it moves integers: bits unchanged, and fast
    32: np.dtype("V32"),
}


class BadAccess(Exception):
    """An access that is out of bounds, misaligned or a read of unwritten memory.

    Args:
        kind: description of the error.
        address: first address at fault.
    """

    def __init__(self, kind: str, address: int) -> None:
        super().__init__(f"{kind} at {address:#x}")
        self.kind, self.address = kind, address


class _Unwritten(NamedTuple):
    start: int
    written: Array  # bool, one per byte

    def select(self, addresses: Array, size: int) -> tuple[Array, Array]:
        """Return the accesses within the range, and the positions of all their bytes."""
        end = self.start + len(self.written)
        inside = addresses[(addresses >= self.start) & (addresses < end)]
        return inside, (inside - self.start)[:, None] + np.arange(size)


class Memory:
    """The memory that kernels may access.

    Accesses must lie within one range, and be aligned to their full width. Overlapping ranges count
    as one; ranges that only touch do not.

    Args:
        ranges: first address and number of bytes of each range.
        more: slower function that returns all ranges; called before an access is refused.
    """

    def __init__(self, ranges: Ranges = (), more: Callable[[], Ranges] | None = None) -> None:
        self._starts, self._ends = _merged(ranges)
        self._more = more
        self._unwritten: list[_Unwritten] = []
        whole = np.frombuffer((ctypes.c_uint8 * _SIZE).from_address(_BASE), np.uint8)
        self._views = {size: whole.view(dtype) for size, dtype in _ELEMENT.items()}

    def forbid_reads_before_writes(self, start: int, size: int) -> None:
        """Refuse reads in this range of bytes that no kernel has written."""
        self._unwritten.append(_Unwritten(start, np.zeros(size, bool)))

    def load(self, addresses: Array, size: int) -> Array:
        """Read ``size`` bytes at each address: an array of the same shape, of that element size.

        Raises:
            BadAccess: misaligned, out of bounds, or not written.
        """
        self._check(addresses, size)
        for area in self._unwritten:
            inside, positions = area.select(addresses.reshape(-1), size)
            bad = ~area.written[positions].all(axis=1)
            if bad.any():
                raise BadAccess("read of unwritten memory", int(inside[bad][0]))
        return self._views[size].take((addresses - _BASE) >> (size.bit_length() - 1))

    def store(self, addresses: Array, values: Array) -> None:
        """Write each value, of any type of 1 to 32 bytes, at its address.

        Raises:
            BadAccess: misaligned or out of bounds.
        """
        size = values.itemsize
        self._check(addresses, size)
        for area in self._unwritten:
            _, positions = area.select(addresses.reshape(-1), size)
            area.written[positions] = True
        index = (addresses - _BASE) >> (size.bit_length() - 1)
        self._views[size][index] = values.view(_ELEMENT[size])

    def _check(self, addresses: Array, size: int) -> None:
        if np.bitwise_or.reduce(addresses, axis=None) & (size - 1):
            misaligned = addresses[(addresses & (size - 1)) != 0]
            raise BadAccess(f"misaligned access of {size} bytes", int(misaligned[0]))
        # a block's accesses mostly lie in one range: two searches instead of one per thread
        low, high = addresses.min(axis=-1), addresses.max(axis=-1)
        if self._inside(low, high, size).all():
            return
        inside = self._inside(addresses, addresses, size)
        if self._more and not inside.all():
            self._starts, self._ends = _merged(self._more())
            inside = self._inside(addresses, addresses, size)
        if not inside.all():
            raise BadAccess(f"access of {size} bytes out of bounds", int(addresses[~inside][0]))

    def _inside(self, first: Array, last: Array, size: int) -> Array:
        """Return True where accesses from the first to the last address lie in one range."""
        if not len(self._starts):
            return np.zeros(first.shape, bool)
        index = np.searchsorted(self._starts, first, "right") - 1
        # written this way round, the highest addresses do not wrap around
        return (index >= 0) & (last <= self._ends[index] - size)


def _merged(ranges: Ranges) -> tuple[Array, Array]:
    """Return the starts and the ends of the ranges, after joining those that overlap."""
    merged: list[list[int]] = []
    for start, size in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], start + size)
        elif size:
            merged.append([start, start + size])
    starts, ends = np.array(merged, np.int64).reshape(-1, 2).T
    return starts, ends
