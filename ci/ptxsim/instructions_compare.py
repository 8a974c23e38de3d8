"""Comparisons, and choices by their outcome."""

from collections.abc import Callable

import numpy as np

from . import arithmetic
from .decode import destination, elementwise, opcode, reader
from .errors import Unsupported
from .formats import FLOATS, stored
from .parse import Instruction
from .state import Batch, Execute, Mask

Array = np.ndarray
Relation = Callable[[Array, Array], Array]

_RELATIONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_JOINS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _unordered(x: Array, y: Array) -> Array:
    return np.isnan(x) | np.isnan(y)


def _float_relation(name: str) -> Relation:
    if name == "nan":
        return _unordered
    if name == "num":
        return lambda x, y: ~_unordered(x, y)
    if name == "ne":  # unlike numpy's and C's, false for NaN
        return lambda x, y: (x < y) | (x > y)
    if name in _RELATIONS:
        return _RELATIONS[name]
    relation = _RELATIONS.get(name[:-1])
    if relation is None or name[-1] != "u":
        raise Unsupported(f"comparison .{name}")
    return lambda x, y: relation(x, y) | _unordered(x, y)


def _relation(instruction: Instruction) -> Relation:
    name, kind = instruction.modifiers[0], instruction.type
    if kind not in FLOATS:
        name = _UNSIGNED.get(name, name) if kind.startswith("u") else name
        if name not in _RELATIONS:
            raise Unsupported(f"comparison .{name}")
        return _RELATIONS[name]
    relation, widen = _float_relation(name), FLOATS[kind].widen
    if "ftz" not in instruction.modifiers:
        return lambda x, y: relation(widen(x), widen(y))
    if kind != "f32":
        raise Unsupported("modifier .ftz")
    flush = arithmetic.flush_subnormal
    return lambda x, y: relation(flush(x), flush(y))


@opcode("setp")
def _compare(instruction: Instruction) -> Execute:
    instruction.allow(instruction.modifiers[0], "ftz", *_JOINS)
    relation, kind = _relation(instruction), instruction.type
    joins = [_JOINS[modifier] for modifier in instruction.modifiers[1:] if modifier in _JOINS]
    if kind.endswith("x2") or "|" in instruction.operands[0]:
        if joins or not kind.endswith("x2"):
            raise Unsupported("two results")
        return _compare_two(instruction, relation)
    if not joins:
        return elementwise(instruction, relation, kind, kind)
    return elementwise(instruction, lambda x, y, p: joins[0](relation(x, y), p), kind, kind, "pred")


def _compare_two(instruction: Instruction, relation: Relation) -> Execute:
    """Decode ``setp.lt.f16x2 p|q, a, b``: p is for the lower halves, q for the upper ones."""
    instruction.expect_operands(3)
    dtype = stored(instruction.type)
    reads = [reader(instruction, source, dtype) for source in instruction.operands[1:]]
    names = [destination(instruction, name) for name in instruction.operands[0].split("|")]
    if len(names) != 2:
        raise Unsupported("one result")

    def execute(batch: Batch, mask: Mask) -> None:
        result = relation(*[read(batch) for read in reads])
        for index, name in enumerate(names):
            batch.write(name, result[..., index], mask)

    return execute


@opcode("selp")
def _select(instruction: Instruction) -> Execute:
    instruction.allow()
    raw = f"b{stored(instruction.type).itemsize * 8}"
    return elementwise(instruction, lambda x, y, p: np.where(p, x, y), raw, raw, "pred")
