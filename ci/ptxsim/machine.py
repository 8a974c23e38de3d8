"""The machine: runs the blocks of a launch, many of them at a time.

A register is a numpy array that broadcasts to [blocks, threads]: a value that is the same for all
threads of a block, or for all blocks, is held and computed once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .decode import Mask
from .errors import Fault, Place, Unsupported
from .footprint import Conflict, Footprint
from .memory import Memory
from .program import Program, Step, load
from .shared import Copy, SharedMemory

Array = np.ndarray


def every_block(kernel: str, count: int) -> Iterable[int]:
    """All blocks of a launch."""
    return range(count)


@dataclass(frozen=True)
class Options:
    """How to run a launch.

    Args:
        blocks: of a kernel's name and the number of blocks of its launch, the blocks to run.
        order: the seed of a random order of the blocks; ascending if None.
        races: find accesses to global memory whose order is left to chance.
        threads_at_once: the blocks run in batches of about this many threads.
        steps: a batch that executes more instructions than this is taken to hang.
    """

    blocks: Callable[[str, int], Iterable[int]] = every_block
    order: int | None = None
    races: bool = True
    threads_at_once: int = 1 << 15
    steps: int = 1_000_000


@dataclass(frozen=True)
class Launch:
    """What all blocks of a launch have in common."""

    program: Program
    grid: tuple[int, ...]
    threads: int
    arguments: dict[str, Array]
    memory: Memory
    shared: int
    options: Options

    @cached_property
    def footprint(self) -> Footprint | None:
        """What was read and written, unless nobody wants to know."""
        return Footprint(self.threads) if self.options.races else None


class Batch:
    """Some blocks of a launch that run together.

    Attributes:
        numbers: of the threads, counted through the whole launch: [blocks, threads].
        registers: by name, arrays that broadcast to [blocks, threads].
        holes: of registers packed from parts some of which nobody has written: the bits of those.
            They may be dropped again, when the register is unpacked or shifted, and nothing else.
        special: the same for the special registers.
        copies: groups of asynchronous copies under way, the last one still open.
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
        """Run to the end, or until the blocks part ways: then return them as batches to run."""
        steps = self.launch.program.steps
        while self._position < len(steps):
            self._steps += 1
            if self._steps > self.launch.options.steps:
                raise self.fault(f"still running after {self._steps - 1} instructions")
            if parts := self._step(steps[self._position]):
                return parts
        return []

    def write(self, name: str, value: Array, mask: Mask) -> None:
        """Set a register, for the threads of the mask."""
        if name == "_":
            return
        if mask is not None:
            old = self.registers.get(name)
            old = np.zeros((1, 1), value.dtype) if old is None else old.view(value.dtype)
            value = np.where(mask, value, old)
        self.registers[name] = value
        self.holes.pop(name, None)

    def pick(self, value: Array, mask: Mask) -> Array:
        """The values of the threads of the mask, in one dimension."""
        full = np.broadcast_to(value, self.shape)
        return full.reshape(-1) if mask is None else full[np.broadcast_to(mask, self.shape)]

    def rows_and_threads(self, mask: Mask) -> tuple[Array, Array]:
        """The position of the block and the number in it, for the threads of the mask."""
        row, thread = np.arange(self.shape[0])[:, None], np.arange(self.shape[1])
        return self.pick(row, mask), self.pick(thread, mask)

    @property
    def line(self) -> int:
        """The line of the instruction that is being executed."""
        return self.launch.program.steps[self._position].instruction.line

    def fault(self, kind: str, thread: int | None = None, address: int | None = None) -> Fault:
        """A fault at this instruction, by the thread of this number."""
        instruction = self.launch.program.steps[self._position].instruction
        place = Place(self.launch.program.name, instruction.line, instruction.text, address=address)
        if thread is not None:
            block, thread = divmod(int(thread), self.launch.threads)
            place = place._replace(block=block, thread=thread)
        return Fault(kind, place)

    def fault_where(self, kind: str, at: Array) -> Fault:
        """A fault at this instruction, by the first thread marked."""
        return self.fault(kind, self.numbers[np.broadcast_to(at, self.shape)][0])

    def unsupported(self, what: str) -> Unsupported:
        """A refusal to execute this instruction."""
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
        """The threads that execute a step: None for all."""
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
        """Choose who goes on: those furthest behind, so that threads meet again.

        Threads bound to fail go first: the others may never get past a barrier.
        """
        doomed = self.launch.program.doomed[self._positions]
        waiting = self._positions[doomed] if doomed.any() else self._positions
        self._position = int(waiting.min())
        if (self._positions == self._position).all():
            self._positions = None

    def _select(self, rows: Array, position: int) -> "Batch":
        """These blocks as a batch of their own, at this instruction."""
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


def run(
    ptx: str,
    grid: Sequence[int],
    threads: int,
    arguments: Sequence[int],
    memory: Memory,
    shared: int = 0,
    options: Options | None = None,
) -> Program:
    """Run a launch of the one kernel of a PTX module, and return the kernel.

    Args:
        ptx: the module.
        grid: the number of blocks along each of up to three axes.
        threads: the number of threads of a block, a power of two and at least a warp.
        arguments: the bits of each argument.
        memory: what the kernel may touch.
        shared: bytes of shared memory.
        options: see Options.

    Raises:
        Unsupported: the program uses something that is not modelled.
        Fault: the program did what is an error, or left to chance, on a GPU.
    """
    program, options = load(ptx), options or Options()
    values = _arguments(program, threads, arguments)
    size = (*grid, 1, 1)[:3]
    with np.errstate(all="ignore"):
        _run_blocks(Launch(program, size, threads, values, memory, shared, options))
    return program


def _arguments(program: Program, threads: int, arguments: Sequence[int]) -> dict[str, Array]:
    """The values of the parameters, after checking that the launch is one of this kernel."""
    if threads < 32 or threads & (threads - 1):
        raise ValueError(f"threads must be a power of two and at least 32, got {threads}")
    if program.threads not in (None, threads):
        kind = f"launched with {threads} threads, compiled for {program.threads}"
        raise Fault(kind, Place(program.name))
    if len(arguments) != len(program.parameters):
        kind = f"launched with {len(arguments)} arguments, compiled for {len(program.parameters)}"
        raise Fault(kind, Place(program.name))
    return {
        name: np.array([[value % (1 << bits)]], f"u{bits // 8}")
        for (name, bits), value in zip(program.parameters, arguments, strict=True)
    }


def _run_blocks(launch: Launch) -> None:
    width, height, depth = launch.grid
    chosen = launch.options.blocks(launch.program.name, width * height * depth)
    blocks = np.fromiter(chosen, np.int64)
    if len(blocks) and not 0 <= blocks.min() <= blocks.max() < width * height * depth:
        raise ValueError(f"{launch.program.name}: no such block: {blocks.min()}..{blocks.max()}")
    if launch.options.order is not None:
        blocks = np.random.default_rng(launch.options.order).permutation(blocks)
    size = max(1, launch.options.threads_at_once // launch.threads)
    for start in range(0, len(blocks), size):
        pending = [Batch(launch, blocks[start : start + size])]
        while pending:
            pending.extend(pending.pop().run())
        if launch.footprint:
            _raise_conflict(launch, launch.footprint.settle())
    if launch.footprint:
        _raise_conflict(launch, launch.footprint.check())


def _raise_conflict(launch: Launch, conflict: Conflict | None) -> None:
    if conflict is None:
        return
    steps = launch.program.steps
    text = next(s.instruction.text for s in steps if s.instruction.line == conflict.line)
    block, thread = divmod(conflict.thread, launch.threads)
    other = divmod(conflict.other_thread, launch.threads)
    kind = f"{conflict.kind} (block {other[0]}, thread {other[1]}, line {conflict.other_line})"
    place = Place(launch.program.name, conflict.line, text, block, thread, conflict.address)
    raise Fault(kind, place)
