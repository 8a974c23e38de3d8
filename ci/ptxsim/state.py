"""State of a launch while it runs: the decoded program, the launch, and batches of blocks.

A register is a numpy array that broadcasts to [blocks, threads]: a value that is the same for all
threads of a block, or for all blocks, is held and computed once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .errors import Fault, Place, Unsupported
from .footprint import Footprint
from .memory import Memory
from .parse import Instruction, Parameter
from .shared import Copy, SharedMemory

Array = np.ndarray
Mask = Array | None
Execute = Callable[["Batch", Mask], None]


def every_block(kernel: str, count: int) -> Iterable[int]:
    """Return the numbers of all blocks of a launch."""
    return range(count)


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Args:
        blocks: function that takes a kernel's name and the number of blocks of its launch, and
            returns the numbers of the blocks to run.
        order: seed of a random order of the blocks; None for ascending order.
        races: raise Fault for data races in global memory.
        threads_at_once: approximate number of threads of a batch of blocks.
        steps: most instructions that a batch may execute before it counts as an endless loop.
    """

    blocks: Callable[[str, int], Iterable[int]] = every_block
    order: int | None = None
    races: bool = True
    threads_at_once: int = 1 << 15
    steps: int = 1_000_000


class Step(NamedTuple):
    """One instruction: a function to execute, or the position to jump to."""

    instruction: Instruction
    execute: Execute | None
    target: int | None


class Program(NamedTuple):
    """A kernel ready to run.

    Attributes:
        doomed: bool for each position, and one past the last step: True if a failure is certain.
        granule: bytes of the narrowest access to shared memory.
        inexact: names of the instructions whose result on a GPU may differ.
    """

    name: str
    parameters: tuple[Parameter, ...]
    threads: int | None
    steps: tuple[Step, ...]
    doomed: Array
    granule: int
    inexact: frozenset[str]


@dataclass(frozen=True)
class Launch:
    """A launch: program, grid (blocks an axis), threads a block, arguments and memory."""

    program: Program
    grid: tuple[int, ...]
    threads: int
    arguments: dict[str, Array]
    memory: Memory
    shared: int
    options: Options

    @cached_property
    def footprint(self) -> Footprint | None:
        """Return the recorded accesses to global memory, or None if races are not checked."""
        return Footprint(self.threads) if self.options.races else None


class Batch:
    """Blocks of a launch that run together.

    Attributes:
        numbers: numbers of the threads in the whole launch, int64: [blocks, threads].
        registers: arrays by name, each broadcasts to [blocks, threads].
        holes: by register, the mask of bits that were packed from unwritten registers. Unpacking
            and shifting may drop them; any other use of them is a fault.
        special: special registers by name, each broadcasts to [blocks, threads].
        copies: groups of unfinished asynchronous copies; the last group is still open.
    """

    def __init__(self, launch: Launch, blocks: Array, shared: SharedMemory | None = None) -> None:
        self.launch, self.blocks = launch, blocks
        self.shape = (len(blocks), launch.threads)
        self.numbers = blocks[:, None] * launch.threads + np.arange(launch.threads)
        granule = launch.program.granule
        self.shared = shared or SharedMemory(len(blocks), launch.shared, launch.threads, granule)
        self.registers: dict[str, Array] = {}
        self.holes: dict[str, int] = {}
        self.special = self._special_registers()
        self.copies: list[list[Copy]] = [[]]
        self._position, self._steps = 0, 0
        # the instruction each thread is at, while they are not all at one
        self._positions: Array | None = None

    def run(self) -> list["Batch"]:
        """Run to the end; if blocks take different branches, return them as batches to run."""
        steps = self.launch.program.steps
        while self._position < len(steps):
            self._steps += 1
            if self._steps > self.launch.options.steps:
                raise self.fault(f"still running after {self._steps - 1} instructions")
            if parts := self._step(steps[self._position]):
                return parts
        return []

    def write(self, name: str, value: Array, mask: Mask) -> None:
        """Set a register for the threads of the mask."""
        if name == "_":
            return
        if mask is not None:
            old = self.registers.get(name)
            old = np.zeros((1, 1), value.dtype) if old is None else old.view(value.dtype)
            value = np.where(mask, value, old)
        self.registers[name] = value
        self.holes.pop(name, None)

    def pick(self, value: Array, mask: Mask) -> Array:
        """Return the values of the threads of the mask, in one dimension."""
        full = np.broadcast_to(value, self.shape)
        return full.reshape(-1) if mask is None else full[np.broadcast_to(mask, self.shape)]

    def rows_and_threads(self, mask: Mask) -> tuple[Array, Array]:
        """Return row of the block and number in the block, for the threads of the mask."""
        row, thread = np.arange(self.shape[0])[:, None], np.arange(self.shape[1])
        return self.pick(row, mask), self.pick(thread, mask)

    @property
    def line(self) -> int:
        """Return the line of PTX of the current instruction."""
        return self.launch.program.steps[self._position].instruction.line

    def fault(self, kind: str, thread: int | None = None, address: int | None = None) -> Fault:
        """Return a fault at the current instruction, by the thread with this number."""
        instruction = self.launch.program.steps[self._position].instruction
        place = Place(self.launch.program.name, instruction.line, instruction.text, address=address)
        if thread is not None:
            block, thread = divmod(int(thread), self.launch.threads)
            place = place._replace(block=block, thread=thread)
        return Fault(kind, place)

    def fault_where(self, kind: str, at: Array) -> Fault:
        """Return a fault at the current instruction, by the first thread of the mask ``at``."""
        return self.fault(kind, self.numbers[np.broadcast_to(at, self.shape)][0])

    def unsupported(self, what: str) -> Unsupported:
        """Return the error for an instruction that is not implemented."""
        return Unsupported(str(self.fault(what)))

    def _special_registers(self) -> dict[str, Array]:
        width, height, depth = self.launch.grid
        thread, block = np.arange(self.shape[1])[None], self.blocks[:, None]
        position = (block % width, block // width % height, block // (width * height))
        found = {"%tid.x": thread, "%ntid.x": self.shape[1], "%laneid": thread % 32}
        for axis, at, size in zip("xyz", position, (width, height, depth), strict=True):
            found |= {f"%ctaid.{axis}": at, f"%nctaid.{axis}": size}
        found = {f"%tid.{axis}": 0 for axis in "yz"} | {f"%ntid.{axis}": 1 for axis in "yz"} | found
        return {name: np.atleast_2d(np.asarray(v, np.uint32)) for name, v in found.items()}

    def _step(self, step: Step) -> list["Batch"]:
        here = None if self._positions is None else self._positions == self._position
        mask = self._enabled(step, here)
        if step.target is not None:
            return self._branch(step.target, here, mask)
        if mask is None or mask.any():
            step.execute(self, mask)
        if here is None:
            self._position += 1
        else:
            self._positions[here] = self._position + 1
            self._regroup()
        return []

    def _enabled(self, step: Step, here: Mask) -> Mask:
        """Return the mask of the threads that execute a step: None for all."""
        mask, name = here, step.instruction.predicate
        if name is not None:
            predicate = self.registers.get(name)
            if predicate is None:
                raise self.fault(f"register {name} is read before it is written")
            predicate = ~predicate if step.instruction.negated else predicate
            mask = predicate if here is None else predicate & here
        return None if mask is None or mask.all() else mask

    def _branch(self, target: int, here: Mask, mask: Mask) -> list["Batch"]:
        if here is None and (mask is None or not mask.any()):
            self._position = target if mask is None else self._position + 1
            return []
        jumps = np.broadcast_to(mask, self.shape)
        if here is None:
            whole = jumps.all(axis=1)
            if (whole == jumps.any(axis=1)).all():
                away, on = np.flatnonzero(whole), np.flatnonzero(~whole)
                return [self._select(away, target), self._select(on, self._position + 1)]
            here = np.ones(self.shape, bool)
            self._positions = np.empty(self.shape, np.int64)
        self._positions[here] = self._position + 1
        self._positions[jumps] = target
        self._regroup()
        return []

    def _regroup(self) -> None:
        """Select the threads to run next: those at the lowest position, so that threads reconverge.

        Threads that are certain to fail run first: others may never pass a barrier.
        """
        doomed = self.launch.program.doomed[self._positions]
        waiting = self._positions[doomed] if doomed.any() else self._positions
        self._position = int(waiting.min())
        if (self._positions == self._position).all():
            self._positions = None

    def _select(self, rows: Array, position: int) -> "Batch":
        """Return these blocks as a new batch, at the instruction ``position``."""
        part = Batch(self.launch, self.blocks[rows], self.shared.select(rows))
        part._position, part._steps = position, self._steps
        part.registers = {
            name: value[rows] if len(value) == len(self.blocks) else value
            for name, value in self.registers.items()
        }
        part.holes = dict(self.holes)
        part.copies = [
            [Copy(*[column[rows] for column in copy]) for copy in group] for group in self.copies
        ]
        return part
