"""Moves of 8 x 8 matrices between shared memory and the registers of a warp."""

import numpy as np

from . import access
from .decode import address_reader, destination, opcode, reader
from .errors import Unsupported
from .parse import Instruction, elements
from .state import Batch, Execute, Mask

Array = np.ndarray

_UINT16, _UINT32 = np.dtype(np.uint16), np.dtype(np.uint32)


def _count(instruction: Instruction) -> int:
    """Return the number of matrices.

    Raises:
        Unsupported: the instruction moves another kind of matrices.
    """
    counts = {"x1": 1, "x2": 2, "x4": 4}
    rest = [m for m in instruction.modifiers if m not in ("trans", "x1", "x2", "x4")]
    plain = [m.removesuffix("::cta") for m in rest]
    found = [counts[m] for m in instruction.modifiers if m in counts]
    if plain != ["sync", "aligned", "m8n8", "shared", "b16"] or len(found) != 1:
        raise Unsupported("move of matrices of this kind")
    return found[0]


def _registers(instruction: Instruction, operand: str) -> tuple[str, ...]:
    names = elements(operand)
    if len(names) != _count(instruction):
        raise Unsupported(f"{len(names)} elements")
    return names


def _first_lanes(batch: Batch, count: int, mask: Mask) -> Array:
    """Return the mask of the threads whose addresses are used: one per row of each matrix."""
    if mask is not None:
        raise batch.unsupported("move of matrices by some threads only")
    return np.broadcast_to(np.arange(batch.shape[1]) % 32 < 8 * count, batch.shape)


@opcode("ldmatrix")
def _load(instruction: Instruction) -> Execute:
    """Decode a load: thread t gets elements 2 * (t % 4) and the next of row t // 4 of a matrix."""
    names = [destination(instruction, x) for x in _registers(instruction, instruction.operands[0])]
    read_offset = address_reader(instruction, instruction.operands[1], 32)
    count, transposed = len(names), "trans" in instruction.modifiers

    def execute(batch: Batch, mask: Mask) -> None:
        lanes = _first_lanes(batch, count, mask)
        offsets = batch.pick(read_offset(batch), lanes)
        matrices = access.load_shared(batch, offsets, _UINT16, 8, lanes).reshape(-1, count, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        pairs = matrices.view(np.uint32).reshape(-1, count, 32)
        for index, name in enumerate(names):
            batch.write(name, pairs[:, index].reshape(batch.shape), None)

    return execute


@opcode("stmatrix")
def _store(instruction: Instruction) -> Execute:
    """Decode a store, the inverse of ldmatrix."""
    names = _registers(instruction, instruction.operands[1])
    reads = [reader(instruction, name, _UINT32) for name in names]
    read_offset = address_reader(instruction, instruction.operands[0], 32)
    count, transposed = len(names), "trans" in instruction.modifiers

    def execute(batch: Batch, mask: Mask) -> None:
        lanes = _first_lanes(batch, count, mask)
        values = [np.broadcast_to(read(batch), batch.shape).reshape(-1, 32) for read in reads]
        matrices = np.stack(values, axis=1).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        offsets = batch.pick(read_offset(batch), lanes)
        access.store_shared(batch, offsets, matrices.reshape(-1, 8), lanes)

    return execute
