"""Accesses to memory by the threads of a batch: faults name the thread, and a trace is kept."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .errors import Fault
from .memory import BadAccess
from .shared import BadSharedAccess
from .state import Batch

Array = np.ndarray
Change = Callable[..., Array]


class Lanes(NamedTuple):
    """Threads that access memory.

    Attributes:
        addresses: int64 [blocks, threads] if all threads take part, or [blocks, 1] if all
            threads of a block access one address; otherwise one-dimensional.
        threads: numbers of the threads in the launch, in the same shape.
        chosen: bool [blocks, threads], the threads that take part, or None for all.
    """

    addresses: Array
    threads: Array
    chosen: Array | None


def lanes(batch: Batch, addresses: Array, mask: Array | None, width: int = 1) -> Lanes:
    """Return the threads of the mask, at least ``width`` in each block."""
    width = max(width, addresses.shape[1], 1 if mask is None else mask.shape[1])
    shape = (batch.shape[0], width)
    addresses, threads = np.broadcast_to(addresses, shape), batch.numbers[:, :width]
    if mask is None:
        return Lanes(addresses, threads, None)
    chosen = np.broadcast_to(mask, shape)
    return Lanes(addresses[chosen], threads[chosen], chosen)


def load(batch: Batch, lanes: Lanes, size: int) -> Array:
    """Read ``size`` bytes of global memory for each thread."""
    try:
        values = batch.launch.memory.load(lanes.addresses, size)
    except BadAccess as bad:
        raise _fault(batch, lanes, "load", bad) from None
    if batch.launch.footprint:
        addresses, threads = lanes.addresses.reshape(-1), lanes.threads.reshape(-1)
        batch.launch.footprint.read(addresses, size, threads, batch.line)
    return values


def store(batch: Batch, lanes: Lanes, values: Array) -> None:
    """Write one value, of any type, to global memory for each thread."""
    try:
        batch.launch.memory.store(lanes.addresses, values.reshape(lanes.addresses.shape))
    except BadAccess as bad:
        raise _fault(batch, lanes, "store", bad) from None
    if batch.launch.footprint:
        addresses, threads = lanes.addresses.reshape(-1), lanes.threads.reshape(-1)
        batch.launch.footprint.write(addresses, values.itemsize, threads, batch.line)


def update(batch: Batch, lanes: Lanes, change: Change, values: list[Array]) -> Array:
    """Replace the value at each thread's address, one thread at a time; return the old values."""
    addresses, threads = lanes.addresses.reshape(-1), lanes.threads.reshape(-1)
    memory, dtype = batch.launch.memory, values[0].dtype
    found = np.zeros(len(addresses), dtype)
    waiting = np.arange(len(addresses))
    while len(waiting):
        # one thread for each address: the first of those that still wait
        turn = waiting[np.unique(addresses[waiting], return_index=True)[1]]
        now = Lanes(addresses[turn], threads[turn], None)
        try:
            found[turn] = memory.load(now.addresses, dtype.itemsize).view(dtype)
            memory.store(now.addresses, change(found[turn], *[value[turn] for value in values]))
        except BadAccess as bad:
            raise _fault(batch, now, "atomic operation", bad) from None
        waiting = np.setdiff1d(waiting, turn, assume_unique=True)
    return found


def _fault(batch: Batch, lanes: Lanes, what: str, bad: BadAccess) -> Fault:
    thread = lanes.threads[lanes.addresses == bad.address][0]
    return batch.fault(f"{bad.kind} ({what})", int(thread), bad.address % (1 << 64))


def load_shared(
    batch: Batch, offsets: Array, dtype: np.dtype, count: int, mask: Array | None
) -> Array:
    """Read ``count`` elements of shared memory for each thread of the mask."""
    rows, threads = batch.rows_and_threads(mask)
    try:
        return batch.shared.load(rows, threads, offsets, dtype, count)
    except BadSharedAccess as bad:
        raise batch.fault(bad.kind, batch.pick(batch.numbers, mask)[bad.at][0]) from None


def store_shared(batch: Batch, offsets: Array, values: Array, mask: Array | None) -> None:
    """Write a row of elements to shared memory for each thread of the mask."""
    rows, threads = batch.rows_and_threads(mask)
    try:
        batch.shared.store(rows, threads, offsets, values)
    except BadSharedAccess as bad:
        raise batch.fault(bad.kind, batch.pick(batch.numbers, mask)[bad.at][0]) from None
