"""Loads and stores."""

from collections.abc import Callable, Sequence

import numpy as np

from . import access
from .decode import address, address_reader, destination, extension, narrow_reader, opcode, vector
from .errors import Unsupported
from .formats import stored
from .parse import Instruction
from .state import Batch, Execute, Mask

Array = np.ndarray
Fetch = Callable[[Batch, Mask], Sequence[Array]]

_SPACES = ("param", "global", "shared", "shared::cta")
# none of these changes what is read or written
_HINTS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak")
_ORDERS = ("volatile", "relaxed", "acquire", "release", "cta", "gpu", "sys")


def _space(instruction: Instruction) -> str:
    found = [modifier for modifier in instruction.modifiers if modifier in _SPACES]
    hints = [m for m in instruction.modifiers if m.split("::")[0] in ("L1", "L2")]
    instruction.allow(*found, *hints, *_HINTS, *_ORDERS, "v2", "v4", "v8")
    if len(found) != 1:
        raise Unsupported("state space")
    return found[0].removesuffix("::cta")


@opcode("ld")
def _load(instruction: Instruction) -> Execute:
    space = _space(instruction)
    instruction.expect_operands(2, 3)  # the third is a cache policy
    if space == "param":
        return _load_parameter(instruction)
    names = vector(instruction, instruction.operands[0])
    extends = [extension(instruction, name, instruction.type) for name in names]
    fetch = (_fetch_global if space == "global" else _fetch_shared)(instruction, len(names))

    def execute(batch: Batch, mask: Mask) -> None:
        for name, extend, value in zip(names, extends, fetch(batch, mask), strict=True):
            batch.write(name, extend(value), mask)

    return execute


def _load_parameter(instruction: Instruction) -> Execute:
    name, offset = address(instruction, instruction.operands[1])
    (register,), dtype = vector(instruction, instruction.operands[0]), stored(instruction.type)
    extend = extension(instruction, register, instruction.type)
    if offset:
        raise Unsupported("part of a parameter")

    def execute(batch: Batch, mask: Mask) -> None:
        value = batch.launch.arguments[name]
        if value.itemsize != dtype.itemsize:
            raise batch.fault(f"load of {dtype.itemsize} bytes of a parameter of {value.itemsize}")
        batch.write(register, extend(value.view(dtype)), mask)

    return execute


def _fetch_global(instruction: Instruction, count: int) -> Fetch:
    dtype = stored(instruction.type)
    read = address_reader(instruction, instruction.operands[1], 64)

    def fetch(batch: Batch, mask: Mask) -> Sequence[Array]:
        lanes = access.lanes(batch, read(batch), mask)
        values = access.load(batch, lanes, count * dtype.itemsize)
        return _split(values[..., None].view(dtype), lanes.chosen)

    return fetch


def _fetch_shared(instruction: Instruction, count: int) -> Fetch:
    dtype = stored(instruction.type)
    read = address_reader(instruction, instruction.operands[1], 32)

    def fetch(batch: Batch, mask: Mask) -> Sequence[Array]:
        offsets = batch.pick(read(batch), mask)
        values = access.load_shared(batch, offsets, dtype, count, mask)
        if mask is None:
            return _split(values.reshape(*batch.shape, count), None)
        return _split(values, np.broadcast_to(mask, batch.shape))

    return fetch


def _split(values: Array, chosen: Array | None) -> Sequence[Array]:
    """Return one array per element of the threads' vectors, zero for threads not chosen."""
    if chosen is not None:
        full = np.zeros((*chosen.shape, values.shape[-1]), values.dtype)
        full[chosen] = values
        values = full
    return list(np.ascontiguousarray(np.moveaxis(values, -1, 0)))


@opcode("st")
def _store(instruction: Instruction) -> Execute:
    space = _space(instruction)
    instruction.expect_operands(2, 3)
    if space == "param":  # an argument of a call
        return lambda batch, mask: None
    names = vector(instruction, instruction.operands[1])
    raw = np.dtype(f"u{stored(instruction.type).itemsize}")
    reads = [narrow_reader(instruction, name, f"b{8 * raw.itemsize}") for name in names]
    bits = 64 if space == "global" else 32
    read_address = address_reader(instruction, instruction.operands[0], bits)

    def execute(batch: Batch, mask: Mask) -> None:
        values = np.stack([batch.pick(read(batch).view(raw), mask) for read in reads], axis=-1)
        if space == "shared":
            offsets = batch.pick(read_address(batch), mask)
            access.store_shared(batch, offsets, values, mask)
        else:
            lanes = access.lanes(batch, read_address(batch), mask, batch.shape[1])
            access.store(batch, lanes, values.view(f"V{len(names) * raw.itemsize}")[:, 0])

    return execute


@opcode("createpolicy")
def _create_policy(instruction: Instruction) -> Execute:
    """Decode a cache policy, which has no effect."""
    to, policy = destination(instruction, instruction.operands[0]), np.zeros((1, 1), np.uint64)
    return lambda batch, mask: batch.write(to, policy, mask)
