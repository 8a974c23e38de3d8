"""Floating-point instructions."""

from collections.abc import Callable

import numpy as np

from . import arithmetic
from .decode import elementwise, opcode
from .errors import Unsupported
from .formats import FLOATS
from .parse import Instruction
from .state import Batch, Execute, Mask

Array = np.ndarray

_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
_APPROXIMATE = {
    "div": np.divide,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": np.reciprocal,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
_EXACT = {"div": np.divide, "sqrt": np.sqrt, "rcp": np.reciprocal}


def _calculate(instruction: Instruction, function: Callable[..., Array], count: int) -> Execute:
    """Execute a function of ``count`` operands of the instruction's type, rounded once."""
    kind = FLOATS[instruction.type]
    flush = _flush(instruction)

    def calculate(*operands: Array) -> Array:
        result = function(*[flush(kind.widen(operand)) for operand in operands])
        return kind.narrow(flush(result))

    execute = elementwise(instruction, calculate, *[instruction.type] * count)
    return _by_halves(instruction, execute) if instruction.type.endswith("x2") else execute


def _by_halves(instruction: Instruction, execute: Execute) -> Execute:
    """Treat a half of the result as unwritten if that half of an operand is."""
    to, *sources = instruction.operands
    size = 4 * FLOATS[instruction.type].stored.itemsize
    halves = [((1 << size) - 1) << (size * half) for half in range(2)]

    def execute_halves(batch: Batch, mask: Mask) -> None:
        holes = {name: batch.holes.pop(name) for name in {*sources} & batch.holes.keys()}
        execute(batch, mask)
        lost = sum(half for half in halves if any(bits & half for bits in holes.values()))
        batch.holes |= {name: bits for name, bits in holes.items() if name != to}
        if lost:
            batch.holes[to] = lost

    return execute_halves


def _flush(instruction: Instruction) -> Callable[[Array], Array]:
    if "ftz" not in instruction.modifiers:
        return lambda x: x
    if instruction.type not in ("f32", "f32x2"):
        raise Unsupported("modifier .ftz")
    return arithmetic.flush_subnormal


def _mixed(instruction: Instruction) -> str | None:
    """Return the narrow type of a mixed instruction such as ``add.rn.f32.bf16``, or None."""
    if instruction.modifiers[-2:-1] != ("f32",):
        return None
    if instruction.type not in ("f16", "bf16") or instruction.modifiers[:-2] != ("rn",):
        raise Unsupported("mixed precision")
    return instruction.type


def _to_f32(kind: str) -> Callable[[Array], Array]:
    return lambda x: FLOATS[kind].widen(x).astype(np.float32)


@opcode("add", "sub", "mul", family="float")
def _binary(instruction: Instruction) -> Execute:
    function = _BINARY[instruction.opcode]
    if kind := _mixed(instruction):
        widen = _to_f32(kind)
        return elementwise(
            instruction, lambda x, y: arithmetic.canonical_nan(function(widen(x), y)), kind, "f32"
        )
    instruction.allow("rn", "ftz")
    return _calculate(instruction, function, 2)


@opcode("fma", family="float")
def _fma(instruction: Instruction) -> Execute:
    if kind := _mixed(instruction):
        widen = _to_f32(kind)

        def fused(x: Array, y: Array, z: Array) -> Array:
            return arithmetic.canonical_nan(arithmetic.fma32(widen(x), widen(y), z))

        return elementwise(instruction, fused, kind, kind, "f32")
    instruction.allow("rn", "ftz")
    return _calculate(instruction, FLOATS[instruction.type].fma, 3)


@opcode("min", "max", family="float")
def _extreme(instruction: Instruction) -> Execute:
    instruction.allow("NaN", "ftz")
    instruction.expect_operands(3, 4)
    function = arithmetic.extreme(instruction.opcode, "NaN" in instruction.modifiers)
    if len(instruction.operands) == 3:
        return _calculate(instruction, function, 2)
    return _calculate(instruction, lambda x, y, z: function(function(x, y), z), 3)


@opcode("div", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh", family="float")
def _function(instruction: Instruction) -> Execute:
    """Decode a function; an approximate one gives the exact result rounded, unlike on a GPU."""
    instruction.allow("rn", "approx", "full", "ftz")
    name, count = instruction.opcode, 2 if instruction.opcode == "div" else 1
    if "rn" in instruction.modifiers and name in _EXACT and instruction.type in ("f32", "f64"):
        return _calculate(instruction, _EXACT[name], count)
    if "rn" in instruction.modifiers or instruction.type != "f32":
        raise Unsupported(f"{name} of this kind")
    function = _APPROXIMATE[name]

    def approximate(*operands: Array) -> Array:
        return function(*[operand.astype(np.float64) for operand in operands]).astype(np.float32)

    return _calculate(instruction, approximate, count)


@opcode("abs", "neg", family="float")
def _sign(instruction: Instruction) -> Execute:
    instruction.allow("ftz")
    return _calculate(instruction, np.abs if instruction.opcode == "abs" else np.negative, 1)


@opcode("copysign", family="float")
def _copysign(instruction: Instruction) -> Execute:
    """Decode copysign: the sign of the first operand, the magnitude of the second."""
    instruction.allow()
    if instruction.type not in ("f32", "f64"):
        raise Unsupported(f"type .{instruction.type}")
    kind = instruction.type
    return elementwise(instruction, lambda sign, size: np.copysign(size, sign), kind, kind)
