"""Decoding of a kernel: every instruction, and properties of the whole program."""

from functools import lru_cache

import numpy as np

from . import (  # noqa: F401  imported because they register the opcodes
    instructions_atomic,
    instructions_compare,
    instructions_control,
    instructions_convert,
    instructions_copy,
    instructions_float,
    instructions_integer,
    instructions_matrix,
    instructions_memory,
)
from .decode import decode
from .errors import Unsupported
from .parse import Instruction, Kernel, parse
from .state import Array, Program, Step

_JUMPS = ("bra", "ret", "exit")


# a decoded program has about 20 objects an instruction, which slow every garbage collection
@lru_cache(maxsize=32)
def load(ptx: str) -> Program:
    """Read and decode the one kernel of a PTX module.

    Raises:
        Unsupported: an instruction, a type, a modifier or a declaration is not known.
    """
    kernel = parse(ptx)
    instructions = kernel.instructions
    return Program(
        kernel.name,
        kernel.parameters,
        kernel.threads,
        tuple(_step(kernel, instruction) for instruction in instructions),
        _doomed(instructions),
        min([_shared_bytes(instruction) for instruction in instructions], default=16),
        frozenset(filter(None, map(_inexact, instructions))),
    )


def _step(kernel: Kernel, instruction: Instruction) -> Step:
    try:
        if instruction.opcode in _JUMPS:
            return Step(instruction, None, _target(kernel, instruction))
        return Step(instruction, decode(instruction), None)
    except Unsupported as reason:
        where = f"kernel {kernel.name}, PTX line {instruction.line} ({instruction.text})"
        raise Unsupported(f"{reason}: {where}") from None


def _target(kernel: Kernel, instruction: Instruction) -> int:
    if instruction.opcode != "bra":
        return len(kernel.instructions)
    if instruction.modifiers not in ((), ("uni",)):
        raise Unsupported("modifier")
    return kernel.labels[instruction.operands[0]]


def _doomed(instructions: tuple[Instruction, ...]) -> Array:
    doomed = np.zeros(len(instructions) + 1, bool)
    for position in reversed(range(len(instructions))):
        instruction = instructions[position]
        fails = instruction.opcode == "trap" or "__assertfail" in instruction.operands
        waits = instruction.opcode in (*_JUMPS, "bar", "barrier")
        doomed[position] = fails or (doomed[position + 1] and not waits)
    return doomed


def _shared_bytes(instruction: Instruction) -> int:
    if instruction.opcode not in ("ld", "st") or "shared" not in instruction.text:
        return 4 if instruction.opcode == "cp" else 16
    return int(instruction.type[1:]) // 8


def _inexact(instruction: Instruction) -> str | None:
    """Return the instruction's full name if PTX does not define its result, else None."""
    modifiers, name = instruction.modifiers, instruction.opcode
    approximate = "approx" in modifiers or "full" in modifiers
    floating = instruction.type.startswith(("f", "bf"))
    # without a rounding modifier the assembler may contract a product and a sum to one rounding
    contractible = name in ("add", "sub", "mul") and floating and "rn" not in modifiers
    unordered = name in ("atom", "red") and floating
    if approximate or contractible or unordered:
        return ".".join((name, *modifiers))
    return None
