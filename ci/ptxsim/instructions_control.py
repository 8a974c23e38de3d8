"""Barriers, exchanges between the threads of a warp, traps and assertions."""

from collections.abc import Callable

import numpy as np

from . import arithmetic
from .decode import destination, opcode, reader
from .errors import Unsupported
from .formats import stored
from .parse import Instruction
from .state import Batch, Execute, Mask

Array = np.ndarray

_UINT32 = np.dtype(np.uint32)
_LANE = np.arange(32)
_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@opcode("fence", "membar")
def _fence(instruction: Instruction) -> Execute:
    """Decode a fence, which does nothing: memory accesses take effect in program order."""
    return lambda batch, mask: None


@opcode("bar", "barrier")
def _barrier(instruction: Instruction) -> Execute:
    if instruction.modifiers == ("warp", "sync"):
        return _warp_barrier
    modifiers = [m for m in instruction.modifiers if m not in ("cta", "aligned")]
    if modifiers != ["sync"] or instruction.operands != ("0",):
        raise Unsupported("barrier of this kind")
    return _block_barrier


def _warp_barrier(batch: Batch, mask: Mask) -> None:
    if mask is not None:
        raise batch.unsupported("barrier of some threads only")
    batch.shared.warp_barrier()


def _block_barrier(batch: Batch, mask: Mask) -> None:
    here = np.broadcast_to(True if mask is None else mask, batch.shape)
    some, every = here.any(axis=1), here.all(axis=1)
    if (some != every).any():
        missing = ~here & some[:, None]
        raise batch.fault_where("divergent barrier: a thread of the block does not reach", missing)
    batch.shared.barrier(every)


def _warps(batch: Batch, value: Array) -> Array:
    """Reshape a value to [warps, lanes], or to [1, lanes] if all warps have the same."""
    if value.size == 1:
        return np.broadcast_to(value, (1, 32))
    return np.broadcast_to(value, batch.shape).reshape(-1, 32)


def _threads(batch: Batch, value: Array) -> Array:
    """Reshape a value of [warps, lanes] to [blocks, threads]."""
    return np.broadcast_to(value, (batch.numbers.size // 32, 32)).reshape(batch.shape)


def _require_members(batch: Batch, members: Array, mask: Mask) -> Array:
    """Check that the members of each warp are its active threads; return the active lanes."""
    active = _warps(batch, np.array([[True]]) if mask is None else mask)
    listed = ((_warps(batch, members) >> _LANE.astype(np.uint32)) & np.uint32(1)) == 1
    wrong = active & (listed != active).any(axis=1, keepdims=True)
    if wrong.any():
        kind = "the mask of members is not the active threads of the warp"
        raise batch.fault_where(kind, _threads(batch, wrong))
    return active


@opcode("shfl")
def _shuffle(instruction: Instruction) -> Execute:
    modifiers = instruction.modifiers
    known = [("sync", kind, "b32") for kind in ("bfly", "down", "up", "idx")]
    if modifiers not in known:
        raise Unsupported("shuffle of this kind")
    instruction.expect_operands(5)
    names = instruction.operands[0].split("|")
    to, *inside = (destination(instruction, name) for name in names)
    value, *rest = (reader(instruction, operand, _UINT32) for operand in instruction.operands[1:])

    def execute(batch: Batch, mask: Mask) -> None:
        amount, limits, members = (read(batch) for read in rest)
        active = _require_members(batch, members, mask)
        warps = (_warps(batch, x).astype(np.int64) for x in (amount, limits))
        source, valid = _source_lane(modifiers[1], *warps)
        if (active & ~np.take_along_axis(active, source, axis=1)).any():
            raise batch.fault("shuffle from a thread that does not take part")
        exchanged = np.take_along_axis(_warps(batch, value(batch)), source, axis=1)
        batch.write(to, _threads(batch, exchanged), mask)
        for name in inside:
            batch.write(name, _threads(batch, valid), mask)

    return execute


def _source_lane(kind: str, amount: Array, limits: Array) -> tuple[Array, Array]:
    """Return the lane each lane reads from (itself outside the limits), and True if within."""
    amount, clamp, segment = amount & 31, limits & 31, (limits >> 8) & 31
    first = _LANE & segment
    last = first | (clamp & ~segment)
    lane = {
        "bfly": _LANE ^ amount,
        "down": _LANE + amount,
        "up": _LANE - amount,
        "idx": first | (amount & ~segment),
    }[kind]
    valid = lane >= last if kind == "up" else lane <= last
    return np.where(valid, lane, _LANE), valid


@opcode("redux")
def _reduce(instruction: Instruction) -> Execute:
    """Decode a reduction over whole warps."""
    instruction.allow("sync", "NaN", "abs", *_REDUCTIONS)
    names = [modifier for modifier in instruction.modifiers if modifier in _REDUCTIONS]
    if len(names) != 1 or instruction.type not in ("u32", "s32", "b32", "f32"):
        raise Unsupported("reduction of this kind")
    function = _reduction(names[0], instruction)
    to = destination(instruction, instruction.operands[0])
    value = reader(instruction, instruction.operands[1], stored(instruction.type))
    members = reader(instruction, instruction.operands[2], _UINT32)

    def execute(batch: Batch, mask: Mask) -> None:
        if not _require_members(batch, members(batch), mask).all():
            raise batch.unsupported("reduction by some threads only")
        lanes = _warps(batch, value(batch))
        if "abs" in instruction.modifiers:
            lanes = np.abs(lanes)
        while lanes.shape[1] > 1:
            lanes = function(*np.split(lanes, 2, axis=1))
        batch.write(to, _threads(batch, lanes), mask)

    return execute


def _reduction(name: str, instruction: Instruction) -> Callable[[Array, Array], Array]:
    if instruction.type != "f32":
        return _REDUCTIONS[name]
    if name not in ("min", "max"):
        raise Unsupported("reduction of this kind")
    function = arithmetic.extreme(name, "NaN" in instruction.modifiers)
    return lambda x, y: arithmetic.canonical_nan(function(x, y))


@opcode("call")
def _call(instruction: Instruction) -> Execute:
    if instruction.operands[0] != "__assertfail":
        raise Unsupported("call")

    def execute(batch: Batch, mask: Mask) -> None:
        raise batch.fault_where("device assertion failed", np.array(True) if mask is None else mask)

    return execute


@opcode("trap")
def _trap(instruction: Instruction) -> Execute:
    def execute(batch: Batch, mask: Mask) -> None:
        raise batch.fault_where("trap", np.array(True) if mask is None else mask)

    return execute
