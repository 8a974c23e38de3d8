"""The search for conflicting accesses, against a check of every byte."""

import itertools

import numpy as np
import pytest

from ci.ptxsim.footprint import Footprint

THREADS = 4


def random_accesses(random, blocks):
    """Yield instructions: write or read, size, and the addresses and numbers of the threads."""
    numbers = np.arange(blocks * THREADS)
    for _ in range(random.integers(1, 4)):
        size = int(random.choice([1, 2, 4]))
        stride = int(random.choice([1, 1, 1, 2, 3, -1]))
        start = 1000 + int(random.integers(0, 60))
        chosen = numbers[random.random(len(numbers)) < random.choice([0.3, 1.0])]
        if len(chosen):
            yield bool(random.random() < 0.6), size, start + size * stride * chosen, chosen


def conflicts(instructions):
    """Return the conflicts of all bytes: two writers, or a read of another block's write."""
    writers, readers = {}, {}
    for write, size, addresses, threads in instructions:
        for address, thread in zip(addresses, threads, strict=True):
            for byte in range(address, address + size):
                (writers if write else readers).setdefault(byte, set()).add(int(thread))
    if any(len(threads) > 1 for threads in writers.values()):
        return True
    pairs = ((writers[byte], readers[byte]) for byte in writers.keys() & readers.keys())
    return any(
        writer // THREADS != reader // THREADS
        for ours, others in pairs
        for writer, reader in itertools.product(ours, others)
    )


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("blocks", [1, 3])
def test_conflicts_are_found(blocks, kept, monkeypatch):
    monkeypatch.setattr("ci.ptxsim.footprint._KEPT", kept)
    random = np.random.default_rng(blocks)
    seen = set()
    for _ in range(1000):
        instructions = list(random_accesses(random, blocks))
        footprint, found = Footprint(THREADS), None
        for batch in np.array_split(np.arange(blocks * THREADS), random.choice([1, blocks])):
            for line, (write, size, addresses, threads) in enumerate(instructions):
                mine = np.isin(threads, batch)
                if mine.any():
                    note = footprint.write if write else footprint.read
                    note(addresses[mine], size, threads[mine], line)
            found = found or footprint.settle()
        found = found or footprint.check()
        assert (found is not None) == conflicts(instructions), instructions
        seen.add(found and found.kind)
        if found and kept:
            check_witness(found, instructions)
    assert len(seen) == (3 if blocks > 1 else 2)


def test_joined_reads_keep_their_extent(monkeypatch):
    monkeypatch.setattr("ci.ptxsim.footprint._KEPT", 0)
    footprint, numbers = Footprint(THREADS), np.arange(THREADS)
    footprint.read(1000 + 4 * numbers, 4, numbers, line=1)
    footprint.read(np.array([1004]), 2, numbers[:1], line=2)
    assert footprint.settle() is None
    footprint.write(np.array([1012]), 4, numbers[:1] + THREADS, line=3)
    assert footprint.settle() is None
    found = footprint.check()
    assert (found.address, found.line, found.other_line) == (1012, 1, 3)


def check_witness(found, instructions):
    """Assert that both reported accesses happened, the other one in the reported block."""
    write, size, addresses, threads = instructions[found.line]
    start = int(addresses[threads == found.thread][0])
    assert start <= found.address < start + size
    assert write == (found.kind == "two threads write one address")
    write, size, addresses, threads = instructions[found.other_line]
    assert write
    assert ((addresses <= found.address) & (found.address < addresses + size)).any()
