"""Asynchronous copies from global to shared memory."""

import numpy as np

from . import access
from .decode import address_reader, constant, opcode, reader
from .errors import Unsupported
from .parse import Instruction
from .shared import Copy
from .state import Batch, Execute, Mask

Array = np.ndarray

_UINT32 = np.dtype(np.uint32)


@opcode("cp")
def _copy(instruction: Instruction) -> Execute:
    kind, *rest = instruction.modifiers
    if kind != "async" or not rest:
        raise Unsupported("copy of this kind")
    if rest == ["commit_group"]:
        return lambda batch, mask: batch.copies.append([])
    if rest in (["wait_group"], ["wait_all"]):
        return _wait(instruction)
    hints = [modifier for modifier in rest if modifier.startswith("L2::")]
    plain = [modifier for modifier in rest if modifier not in hints]
    if plain not in (["ca", "shared", "global"], ["cg", "shared", "global"]) or len(hints) > 1:
        raise Unsupported("copy of this kind")
    return _start(instruction)


def _wait(instruction: Instruction) -> Execute:
    """Decode a wait: finish the copies of all committed groups but the last few."""
    everything = "wait_all" in instruction.modifiers
    count = None if everything else constant(instruction.operands[0], _UINT32)
    if count is None and not everything:
        raise Unsupported("number of groups")
    last = 0 if count is None else 1 + int(count[0, 0])

    def execute(batch: Batch, mask: Mask) -> None:
        if mask is not None:
            raise batch.unsupported("wait for the copies of some threads only")
        landing = batch.copies[: len(batch.copies) - last]
        batch.copies = batch.copies[len(landing) :] or [[]]
        for copy in (copy for group in landing for copy in group):
            _land(batch, copy)

    return execute


def _land(batch: Batch, copy: Copy) -> None:
    if copy.chosen.any():
        access.store_shared(batch, copy.offsets[copy.chosen], copy.data[copy.chosen], copy.chosen)


def _start(instruction: Instruction) -> Execute:
    instruction.expect_operands(3, 4)
    where, source, width, *present = instruction.operands
    bytes_copied = constant(width, _UINT32)
    if bytes_copied is None or int(bytes_copied[0, 0]) not in (4, 8, 16):
        raise Unsupported(f"copy of {width} bytes")
    size = int(bytes_copied[0, 0])
    read_offset = address_reader(instruction, where, 32)
    read_address = address_reader(instruction, source, 64)
    # fewer bytes than are copied may be present: the rest is zero
    read_present = reader(instruction, (present or [width])[0], _UINT32)

    def execute(batch: Batch, mask: Mask) -> None:
        chosen = np.broadcast_to(True if mask is None else mask, batch.shape)
        there = np.broadcast_to(read_present(batch), batch.shape)
        if (chosen & (there != 0) & (there != size)).any():
            raise batch.unsupported("copy of which some bytes only are present")
        data = np.zeros((*batch.shape, size), np.uint8)
        if (loaded := chosen & (there == size)).any():
            lanes = access.lanes(batch, read_address(batch), loaded, batch.shape[1])
            data[loaded] = access.load(batch, lanes, size)[:, None].view(np.uint8)
        offsets = np.broadcast_to(read_offset(batch), batch.shape)
        batch.copies[-1].append(Copy(offsets, data, chosen))

    return execute
