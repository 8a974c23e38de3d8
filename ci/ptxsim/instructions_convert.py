"""Moves and conversions."""

from collections.abc import Callable

import numpy as np

from . import arithmetic
from .decode import (
    SPECIAL,
    destination,
    elementwise,
    extension,
    narrow_reader,
    opcode,
    reader,
    without_holes,
)
from .errors import Unsupported
from .formats import FLOATS, INTEGERS, stored
from .parse import Instruction, elements
from .state import Batch, Execute, Mask

Array = np.ndarray
Convert = Callable[[Array], Array]

_TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@opcode("mov")
def _move(instruction: Instruction) -> Execute:
    instruction.allow()
    instruction.expect_operands(2)
    if instruction.operands[0].startswith("{"):
        return _unpack(instruction)
    if instruction.operands[1].startswith("{"):
        return _pack(instruction)
    return elementwise(instruction, lambda x: x, instruction.type)


@opcode("cvta")
def _convert_address(instruction: Instruction) -> Execute:
    """Decode a change of the address space as a move: all implemented spaces share addresses."""
    if "global" not in instruction.modifiers:
        raise Unsupported("space of cvta")
    return elementwise(instruction, lambda x: x, instruction.type)


def _part(instruction: Instruction, count: int) -> np.dtype:
    bits = stored(instruction.type).itemsize * 8 // count
    return INTEGERS[f"b{bits}"]


def _unpack(instruction: Instruction) -> Execute:
    names = [destination(instruction, name) for name in elements(instruction.operands[0])]
    part, source = _part(instruction, len(names)), instruction.operands[1]
    read = reader(instruction, source, stored(instruction.type))

    def execute(batch: Batch, mask: Mask) -> None:
        taken = [_bits(part, index) for index, name in enumerate(names) if name != "_"]
        whole = without_holes(batch, source, sum(taken), read)
        parts = np.ascontiguousarray(whole)[..., None].view(part)
        for index, name in enumerate(names):
            batch.write(name, np.ascontiguousarray(parts[..., index]), mask)

    return execute


def _bits(part: np.dtype, index: int) -> int:
    """Return the mask of the bits that part ``index`` of a register has."""
    size = 8 * part.itemsize
    return ((1 << size) - 1) << (size * index)


def _is_unwritten(batch: Batch, name: str) -> bool:
    return name.startswith("%") and name not in SPECIAL and name not in batch.registers


def _pack(instruction: Instruction) -> Execute:
    names = elements(instruction.operands[1])
    part, whole = _part(instruction, len(names)), stored(instruction.type)
    reads = [reader(instruction, name, part) for name in names]
    to = destination(instruction, instruction.operands[0])

    def execute(batch: Batch, mask: Mask) -> None:
        # the compiler fills a part that it does not need with any register
        holes = {i for i, name in enumerate(names) if _is_unwritten(batch, name)}
        empty = np.zeros((1, 1), part)
        parts = [empty if i in holes else read(batch) for i, read in enumerate(reads)]
        batch.write(to, np.stack(np.broadcast_arrays(*parts), axis=-1).view(whole)[..., 0], mask)
        if holes:
            batch.holes[to] = sum(_bits(part, i) for i in holes)

    return execute


@opcode("cvt")
def _convert(instruction: Instruction) -> Execute:
    *modifiers, to, source = instruction.modifiers
    for modifier in modifiers:
        if modifier not in ("rn", "ftz", *_TO_INTEGRAL):
            raise Unsupported(f"modifier .{modifier}")
    if to.endswith("x2"):
        return _convert_two(instruction)
    instruction.expect_operands(2)
    register, operand = instruction.operands
    convert = _conversion(modifiers, to, source)
    read = narrow_reader(instruction, operand, source)
    extend = extension(instruction, register, to)

    def execute(batch: Batch, mask: Mask) -> None:
        batch.write(register, extend(convert(read(batch))), mask)

    return execute


def _convert_two(instruction: Instruction) -> Execute:
    """Decode ``cvt.rn.bf16x2.f32 d, a, b``: a goes to the upper half of d."""
    if instruction.modifiers not in (("rn", "bf16x2", "f32"), ("rn", "f16x2", "f32")):
        raise Unsupported("packed conversion")
    kind = FLOATS[instruction.modifiers[1]]

    def convert(upper: Array, lower: Array) -> Array:
        return kind.narrow(np.stack(np.broadcast_arrays(lower, upper), axis=-1))

    return elementwise(instruction, convert, "f32", "f32")


def _conversion(modifiers: list[str], to: str, source: str) -> Convert:
    for kind in (to, source):
        if kind.endswith("x2") or (kind not in FLOATS and kind not in INTEGERS):
            raise Unsupported(f"type .{kind}")
    if source in FLOATS:
        return _from_float(modifiers, to, source)
    if to in FLOATS:
        if modifiers != ["rn"]:
            raise Unsupported("conversion of an integer without .rn")
        return _integer_to_float(to, source)
    if modifiers:
        raise Unsupported(f"modifier .{modifiers[0]}")
    return lambda x: x.astype(INTEGERS[to])


def _integer_to_float(to: str, source: str) -> Convert:
    target = FLOATS[to]
    if to in ("f32", "f64"):
        return lambda x: x.astype(target.stored)
    if source.endswith("64"):
        raise Unsupported(f"conversion of .{source} to .{to}")
    return lambda x: target.narrow(x.astype(np.float64))


def _from_float(modifiers: list[str], to: str, source: str) -> Convert:
    integral = [_TO_INTEGRAL[modifier] for modifier in modifiers if modifier in _TO_INTEGRAL]
    widen, bits = FLOATS[source].widen, FLOATS[source].stored.itemsize * 8
    flush = "ftz" in modifiers
    if flush and "f32" not in (to, source):
        raise Unsupported("modifier .ftz")
    if to in FLOATS and bits > FLOATS[to].stored.itemsize * 8 and "rn" not in modifiers:
        raise Unsupported("narrowing conversion without .rn")
    if to in INTEGERS and len(integral) != 1:
        raise Unsupported("conversion to an integer without rounding")

    def convert(x: Array) -> Array:
        x = widen(x)
        x = arithmetic.flush_subnormal(x) if flush and source == "f32" else x
        x = integral[0](x) if integral else x
        if to in INTEGERS:
            return arithmetic.to_integer(x, INTEGERS[to], bits)
        return _narrow(x, to, flush)

    return convert


def _narrow(x: Array, to: str, flush: bool) -> Array:
    if to == "f64":
        return x.astype(np.float64)
    if to == "f32":
        x = x.astype(np.float32)
        x = arithmetic.flush_subnormal(x) if flush else x
    return FLOATS[to].narrow(x)
