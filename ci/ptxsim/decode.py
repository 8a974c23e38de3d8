"""Decoding of instructions to Python functions: the table of opcodes, and shared helpers."""

import re
from collections.abc import Callable

import numpy as np

from .errors import Unsupported
from .formats import PREDICATE, stored
from .formats import family as family_of
from .parse import Instruction, elements
from .state import Array, Batch, Execute, Mask

Read = Callable[[Batch], Array]
Decoder = Callable[[Instruction], Execute]

_DECODERS: dict[tuple[str, str], Decoder] = {}
_INTEGER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_ADDRESS = re.compile(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
SPECIAL = {f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {"%laneid"}


def opcode(*names: str, family: str = "any") -> Callable[[Decoder], Decoder]:
    """Register a decoder for these opcodes, if the instruction's type is of this family."""

    def register(decoder: Decoder) -> Decoder:
        for name in names:
            _DECODERS[name, family] = decoder
        return decoder

    return register


def decode(instruction: Instruction) -> Execute:
    """Make the function that executes an instruction for the threads of a batch.

    Raises:
        Unsupported: the opcode, a modifier, a type or an operand is not known.
    """
    family = family_of(instruction.type)
    decoder = _DECODERS.get((instruction.opcode, family))
    decoder = decoder or _DECODERS.get((instruction.opcode, "any"))
    if decoder is None:
        raise Unsupported("opcode")
    return decoder(instruction)


def constant(operand: str, dtype: np.dtype) -> Array | None:
    """Return the value of an immediate operand, or None for any other operand."""
    bits = dtype.itemsize * 8
    floating = re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", operand)
    if floating:
        if bits != (32 if floating[1] in "fF" else 64):
            raise Unsupported(f"{operand} for {bits} bits")
        value = int(floating[2], 16)
    elif integer := _INTEGER.fullmatch(operand):
        value = int(integer[2], 0) * (-1 if integer[1] else 1)
    else:
        return None
    if dtype == PREDICATE:
        return np.array([[value != 0]])
    return np.array([[value % (1 << bits)]], f"u{dtype.itemsize}").view(dtype)


def reader(instruction: Instruction, operand: str, dtype: np.dtype) -> Read:
    """Make the function that reads an operand as values of this type."""
    if operand.startswith("!"):
        read = reader(instruction, operand[1:], PREDICATE)
        return lambda batch: ~read(batch)
    if operand in SPECIAL:
        return lambda batch: batch.special[operand].astype(dtype, copy=False)
    if operand.startswith("%"):
        return _register_reader(instruction, operand, dtype)
    value = constant(operand, dtype)
    if operand in instruction.symbols:
        value = np.full((1, 1), instruction.symbols[operand], dtype)
    if value is None:
        raise Unsupported(f"operand {operand}")
    return lambda batch: value


def _register_reader(instruction: Instruction, name: str, dtype: np.dtype) -> Read:
    bits = instruction.registers.bits(name)
    if bits != (1 if dtype == PREDICATE else dtype.itemsize * 8):
        raise Unsupported(f"{bits} bits of {name} as {dtype}")

    def read(batch: Batch) -> Array:
        value = batch.registers.get(name)
        if value is None or name in batch.holes:
            raise batch.fault(f"register {name} is read before it is written")
        return value if value.dtype is dtype else value.view(dtype)

    return read


def without_holes(batch: Batch, name: str, taken: int, read: Read) -> Array:
    """Call ``read`` on a register of which only the bits ``taken`` are used."""
    holes = batch.holes.get(name, 0)
    if holes & taken == 0:
        batch.holes.pop(name, None)  # for this reader alone
    try:
        return read(batch)
    finally:
        if holes:
            batch.holes[name] = holes


def narrow_reader(instruction: Instruction, operand: str, kind: str) -> Read:
    """Make a reader for which a register may be wider than the type: its low bits are read."""
    dtype = stored(kind)
    if not operand.startswith("%") or operand in SPECIAL:
        return reader(instruction, operand, dtype)
    bits = instruction.registers.bits(operand)
    if bits <= dtype.itemsize * 8:
        return reader(instruction, operand, dtype)
    read = reader(instruction, operand, np.dtype(f"u{bits // 8}"))
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return lambda batch: read(batch).astype(unsigned).view(dtype)


def destination(instruction: Instruction, operand: str) -> str:
    """Return the register that an operand names, or ``_`` for none."""
    if operand != "_":
        instruction.registers.bits(operand)
    return operand


def extension(instruction: Instruction, register: str, kind: str) -> Callable[[Array], Array]:
    """Make the function that fills a register with values of a type as wide or narrower."""
    if register == "_":
        return lambda value: value
    dtype = stored(kind)
    size = instruction.registers.bits(register) // 8
    if size < dtype.itemsize:
        raise Unsupported(f"type .{kind} in {register}")
    if size == dtype.itemsize:
        return lambda value: value
    wide = np.dtype(f"{'i' if kind.startswith('s') else 'u'}{size}")
    narrow = np.dtype(f"{wide.kind}{dtype.itemsize}")
    return lambda value: value.view(narrow).astype(wide)


def elementwise(instruction: Instruction, function: Callable[..., Array], *kinds: str) -> Execute:
    """Execute a function of operands of these types, thread by thread."""
    instruction.expect_operands(1 + len(kinds))
    to = destination(instruction, instruction.operands[0])
    reads = [
        reader(instruction, source, stored(kind))
        for source, kind in zip(instruction.operands[1:], kinds, strict=True)
    ]

    def execute(batch: Batch, mask: Mask) -> None:
        batch.write(to, function(*[read(batch) for read in reads]), mask)

    return execute


def address(instruction: Instruction, operand: str) -> tuple[str, int]:
    """Return the base and the offset of ``[base + offset]``."""
    found = _ADDRESS.fullmatch(operand)
    if not found:
        raise Unsupported(f"address {operand}")
    offset = constant(found[2] or "0", np.dtype(np.int64))
    if offset is None:
        raise Unsupported(f"address {operand}")
    return found[1], int(offset[0, 0])


def address_reader(instruction: Instruction, operand: str, bits: int) -> Read:
    """Make the function that reads ``[base + offset]`` as int64 addresses."""
    base, offset = address(instruction, operand)
    read = reader(instruction, base, np.dtype(f"i{bits // 8}"))
    if not offset:
        return lambda batch: read(batch).astype(np.int64, copy=False)
    return lambda batch: read(batch).astype(np.int64) + offset


def vector(instruction: Instruction, operand: str) -> tuple[str, ...]:
    """Return the registers of a vector operand.

    Raises:
        Unsupported: the modifiers declare another length.
    """
    names = elements(operand)
    length = next((int(m[1:]) for m in instruction.modifiers if re.fullmatch(r"v\d", m)), 1)
    if len(names) != length:
        raise Unsupported(f"{len(names)} elements")
    return names
