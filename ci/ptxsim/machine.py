"""Execution of a launch: checks its arguments and runs its blocks, many of them at a time."""

from collections.abc import Sequence

import numpy as np

from .errors import Fault, Place
from .footprint import Conflict
from .memory import Memory
from .program import load
from .state import Array, Batch, Launch, Options, Program


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
        ptx: text of the module.
        grid: number of blocks along each of up to three axes.
        threads: number of threads of a block, a power of two and at least a warp.
        arguments: bits of each argument as an integer.
        memory: memory that the kernel may access.
        shared: bytes of shared memory.
        options: options of the run; None for the defaults.

    Raises:
        Unsupported: the program uses a feature that is not implemented.
        Fault: the program makes an error or has undefined behaviour on a GPU.
    """
    program, options = load(ptx), options or Options()
    values = _arguments(program, threads, arguments)
    size = (*grid, 1, 1)[:3]
    with np.errstate(all="ignore"):
        _run_blocks(Launch(program, size, threads, values, memory, shared, options))
    return program


def _arguments(program: Program, threads: int, arguments: Sequence[int]) -> dict[str, Array]:
    """Return the parameters by name, after checking the launch against the kernel."""
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
