"""Integer and bit instructions."""

from collections.abc import Callable

import numpy as np

from . import arithmetic
from .decode import constant, destination, elementwise, opcode, reader, without_holes
from .errors import Unsupported
from .formats import stored
from .parse import Instruction
from .state import Batch, Execute, Mask

Array = np.ndarray

_BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_UNARY = {"abs": np.abs, "neg": np.negative, "not": np.invert}
_DIVISION = {"div": arithmetic.divide, "rem": arithmetic.remainder}


@opcode(*_BINARY, family="integer")
def _binary(instruction: Instruction) -> Execute:
    instruction.allow()
    kind = instruction.type
    return elementwise(instruction, _BINARY[instruction.opcode], kind, kind)


@opcode("add", "min", "max", family="other")
def _binary_of_halves(instruction: Instruction) -> Execute:
    """Decode an operation on both halves of a register, such as ``max.u16x2``."""
    instruction.allow()
    if instruction.type not in ("u16x2", "s16x2"):
        raise Unsupported(f"type .{instruction.type}")
    half = stored(instruction.type.removesuffix("x2"))
    function = _BINARY[instruction.opcode]

    def halves(x: Array) -> Array:
        return np.ascontiguousarray(x)[..., None].view(half)

    def combine(x: Array, y: Array) -> Array:
        return np.ascontiguousarray(function(halves(x), halves(y))).view(np.uint32)[..., 0]

    return elementwise(instruction, combine, "b32", "b32")


@opcode("and", "or", "xor", family="predicate")
def _logical(instruction: Instruction) -> Execute:
    instruction.allow()
    return elementwise(instruction, _BINARY[instruction.opcode], "pred", "pred")


@opcode(*_UNARY, family="integer")
@opcode("not", family="predicate")
def _unary(instruction: Instruction) -> Execute:
    instruction.allow()
    return elementwise(instruction, _UNARY[instruction.opcode], instruction.type)


@opcode("mul", "mad", family="integer")
def _product(instruction: Instruction) -> Execute:
    form, kind = instruction.modifiers if len(instruction.modifiers) == 2 else ("", "")
    if form not in ("lo", "hi", "wide"):
        raise Unsupported("form of product")
    multiply = {"lo": np.multiply, "hi": arithmetic.multiply_high, "wide": _multiply_wide}[form]
    if instruction.opcode == "mul":
        return elementwise(instruction, multiply, kind, kind)
    addend = f"{kind[0]}{2 * int(kind[1:])}" if form == "wide" else kind
    return elementwise(instruction, lambda x, y, z: multiply(x, y) + z, kind, kind, addend)


def _multiply_wide(x: Array, y: Array) -> Array:
    wide = np.dtype(f"{x.dtype.kind}{2 * x.itemsize}")
    return x.astype(wide) * y.astype(wide)


@opcode("div", "rem", family="integer")
def _division(instruction: Instruction) -> Execute:
    instruction.allow()
    instruction.expect_operands(3)
    to = destination(instruction, instruction.operands[0])
    dtype, function = stored(instruction.type), _DIVISION[instruction.opcode]
    dividend, divisor = (reader(instruction, x, dtype) for x in instruction.operands[1:])

    def execute(batch: Batch, mask: Mask) -> None:
        x, y = dividend(batch), divisor(batch)
        zero = (y == 0) if mask is None else (y == 0) & mask
        if zero.any():
            raise batch.fault_where("division by zero", zero)
        batch.write(to, function(x, np.where(y == 0, dtype.type(1), y)), mask)

    return execute


@opcode("shl", "shr", family="integer")
def _shift(instruction: Instruction) -> Execute:
    instruction.allow()
    kind = instruction.type
    bits, function = int(kind[1:]), {"shl": np.left_shift, "shr": np.right_shift}

    def shift(x: Array, amount: Array) -> Array:
        # numpy shifts out everything but the sign when the amount is the width, as PTX does
        return function[instruction.opcode](x, np.minimum(amount, bits).astype(x.dtype))

    by = constant(instruction.operands[-1], np.dtype(np.uint32))
    if instruction.opcode == "shl" or by is None:
        return elementwise(instruction, shift, kind, "u32")
    instruction.expect_operands(3)
    to, source = destination(instruction, instruction.operands[0]), instruction.operands[1]
    read = reader(instruction, source, stored(kind))
    taken = ((1 << bits) - 1) >> int(by[0, 0]) << int(by[0, 0])

    def shift_right(batch: Batch, mask: Mask) -> None:
        batch.write(to, shift(without_holes(batch, source, taken, read), by), mask)

    return shift_right


@opcode("shf")
def _funnel_shift(instruction: Instruction) -> Execute:
    if instruction.type != "b32" or len(instruction.modifiers) != 3:
        raise Unsupported("funnel shift")
    direction, mode, _ = instruction.modifiers
    if direction not in "lr" or mode not in ("wrap", "clamp"):
        raise Unsupported("funnel shift")

    def shift(low: Array, high: Array, amount: Array) -> Array:
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        amount = amount & np.uint32(31) if mode == "wrap" else np.minimum(amount, 32)
        amount = amount.astype(np.uint64)
        if direction == "l":
            return ((both << amount) >> np.uint64(32)).astype(np.uint32)
        return (both >> amount).astype(np.uint32)

    return elementwise(instruction, shift, "b32", "b32", "u32")


@opcode("popc", "clz", family="integer")
def _count(instruction: Instruction) -> Execute:
    instruction.allow()
    count: dict[str, Callable[[Array], Array]] = {
        "popc": lambda x: np.bitwise_count(x).astype(np.uint32),
        "clz": arithmetic.leading_zeros,
    }
    return elementwise(instruction, count[instruction.opcode], instruction.type)


def _low_bits(count: Array, dtype: np.dtype) -> Array:
    """Return a mask of the lowest ``count`` bits, or of all bits if there are fewer."""
    bits = dtype.itemsize * 8
    partial = (dtype.type(1) << np.minimum(count, bits - 1).astype(dtype)) - dtype.type(1)
    return np.where(count >= bits, ~dtype.type(0), partial)


@opcode("bfe", family="integer")
def _extract(instruction: Instruction) -> Execute:
    instruction.allow()
    kind = instruction.type
    dtype = np.dtype(f"u{stored(kind).itemsize}")
    bits = dtype.itemsize * 8

    def extract(x: Array, position: Array, length: Array) -> Array:
        position, length = position & np.uint32(255), length & np.uint32(255)
        x = x.view(dtype)
        kept = _low_bits(np.minimum(length, bits - np.minimum(position, bits)), dtype)
        field = (x >> np.minimum(position, bits).astype(dtype)) & kept
        if kind.startswith("u"):
            return field
        top = np.minimum(position + np.maximum(length, 1) - np.uint32(1), bits - 1).astype(dtype)
        negative = ((x >> top) & dtype.type(1)).astype(bool) & (length > 0)
        return np.where(negative, field | ~kept, field)

    return elementwise(instruction, extract, kind, "u32", "u32")


@opcode("bfi", family="integer")
def _insert(instruction: Instruction) -> Execute:
    instruction.allow()
    dtype = stored(instruction.type)
    bits = dtype.itemsize * 8

    def insert(x: Array, into: Array, position: Array, length: Array) -> Array:
        position, length = position & np.uint32(255), length & np.uint32(255)
        at = np.minimum(position, bits).astype(dtype)
        field = _low_bits(length, dtype)
        return (into & ~(field << at)) | ((x & field) << at)

    return elementwise(instruction, insert, instruction.type, instruction.type, "u32", "u32")


@opcode("prmt", family="integer")
def _permute(instruction: Instruction) -> Execute:
    if instruction.modifiers != ("b32",):
        raise Unsupported("mode of prmt")

    def permute(x: Array, y: Array, selector: Array) -> Array:
        both = (y.astype(np.uint64) << np.uint64(32)) | x
        result = np.zeros((1, 1), np.uint64)
        for place in range(4):
            choice = (selector >> np.uint32(4 * place)).astype(np.uint64)
            byte = (both >> ((choice & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(choice & np.uint64(8), sign, byte)
            result = result | (byte << np.uint64(8 * place))
        return result.astype(np.uint32)

    return elementwise(instruction, permute, "b32", "b32", "b32")


@opcode("lop3", family="integer")
def _logic_of_three(instruction: Instruction) -> Execute:
    table = constant(instruction.operands[-1], np.dtype(np.uint32))
    if instruction.modifiers != ("b32",) or table is None:
        raise Unsupported("lop3 of this kind")
    terms = [term for term in range(8) if (int(table[0, 0]) >> term) & 1]

    def logic(x: Array, y: Array, z: Array, _: Array) -> Array:
        result = np.zeros((1, 1), np.uint32)
        for term in terms:
            chosen = (x if term & 4 else ~x) & (y if term & 2 else ~y) & (z if term & 1 else ~z)
            result = result | chosen
        return result

    return elementwise(instruction, logic, "b32", "b32", "b32", "b32")
