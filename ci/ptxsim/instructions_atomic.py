"""Atomic operations on global memory."""

import re

import numpy as np

from . import access
from .decode import address_reader, destination, opcode, reader
from .errors import Unsupported
from .formats import stored
from .parse import Instruction
from .state import Batch, Execute, Mask

Array = np.ndarray

_CHANGES = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
}
_ORDERS = ("relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys")


@opcode("atom", "red")
def _atomic(instruction: Instruction) -> Execute:
    """Decode an atomic operation: threads take turns by their numbers, blocks by their batch."""
    names = [modifier for modifier in instruction.modifiers if modifier in _CHANGES]
    instruction.allow("global", *_ORDERS, *names)
    known = re.fullmatch(r"[busf](32|64)", instruction.type) and "global" in instruction.modifiers
    if len(names) != 1 or not known:
        raise Unsupported("atomic operation")
    operands = instruction.operands
    to = destination(instruction, operands[0] if instruction.opcode == "atom" else "_")
    where, *sources = operands[1:] if instruction.opcode == "atom" else operands
    if len(sources) != (2 if names[0] == "cas" else 1):
        raise Unsupported(f"{len(operands)} operands")
    dtype, change = stored(instruction.type), _CHANGES[names[0]]
    read_address = address_reader(instruction, where, 64)
    reads = [reader(instruction, source, dtype) for source in sources]

    def execute(batch: Batch, mask: Mask) -> None:
        lanes = access.lanes(batch, read_address(batch), mask, batch.shape[1])
        values = [batch.pick(read(batch), mask) for read in reads]
        old = np.zeros(batch.shape, dtype)
        chosen = np.broadcast_to(True if mask is None else mask, batch.shape)
        old[chosen] = access.update(batch, lanes, change, values)
        batch.write(to, old, mask)

    return execute
