"""State tensors: detection of their format, allocation, and conversion to another format."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_optim.formats.codecs import Codec, ColumnSpec
from fused_optim.formats.registry import PLAIN, STATES, WEIGHTS
from fused_optim.formats.stochastic_rounding import random_bits

PIECE = 1 << 20  # number of elements that are converted at once, a multiple of the block size
State = MutableMapping[str, Any]


def scale_shape(param: Tensor, block: int) -> tuple[int, ...]:
    """Return the shape of the scales for blocks of ``block`` elements of ``param``.

    It is ``[rows, blocks of a row]`` where no block leaves a row of dim 0, so that scales can be
    sharded as the rows are; else ``[blocks]``, and the blocks are consecutive in memory.
    """
    row = param.shape[1:].numel()
    if len(param.shape) > 1 and row and row % block == 0 and param.stride(0) == row:
        return (param.shape[0], row // block)
    return (-(-param.numel() // block),)


def matches_column(tensor: Any, column: ColumnSpec, param: Tensor) -> bool:
    """Return True if ``tensor`` can be this column of a value of ``param``."""
    if not isinstance(tensor, Tensor) or tensor.device != param.device:
        return False
    if column.block > 1:
        # one dim: an older checkpoint
        shapes = (scale_shape(param, column.block), (-(-param.numel() // column.block),))
        return tensor.dtype is column.dtype and tensor.shape in shapes
    if column.dtype is None:
        return tensor.shape == param.shape and tensor.itemsize > 1 and tensor.dtype.is_signed
    return tensor.shape == param.shape and tensor.dtype is column.dtype


def has_columns(
    state: State, keys: Sequence[str], columns: Sequence[ColumnSpec], param: Tensor
) -> bool:
    """Return True if ``state`` has these columns of a value of ``param``."""
    return all(matches_column(state.get(k), c, param) for k, c in zip(keys, columns, strict=True))


def detect_format(state: State, state_key: str, param: Tensor) -> Codec | None:
    """Return the codec in which a state is stored; None if it is missing or the codec unknown."""
    for codec in {codec: None for pair in STATES.values() for codec in pair}:
        if has_columns(state, codec.column_keys(state_key), codec.columns, param):
            return codec
    return None


def detect_weight_format(state: State, param: Tensor) -> Codec:
    """Return the codec of the weight, which the entries of ``state`` determine."""
    for codec, _ in WEIGHTS.values():
        if codec.extra_keys and has_columns(state, codec.extra_keys, codec.columns[1:], param):
            return codec
    return PLAIN


def decode(codec: Codec, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the value that ``tensors`` store, with the strides of the first of them."""
    value = _dense(tensors[0], dtype)
    for piece, columns in _pieces(codec, [_as(tensor, value) for tensor in tensors]):
        _flat(value)[piece] = codec.load(columns, dtype)
    return value


def encode(codec: Codec, value: Tensor, param: Tensor) -> list[Tensor]:
    """Return new tensors that store ``value``, with the strides of ``param``."""
    tensors = allocate(codec, param)
    source = _flat(_as(value, tensors[0]))
    for piece, columns in _pieces(codec, tensors):
        part = source[piece]
        noise = _make_noise(piece.start, len(part), value.device) if codec.stochastic else None
        codec.store(columns, part, noise)
    return tensors


def allocate(codec: Codec, param: Tensor) -> list[Tensor]:
    """Return new zero tensors for a value of ``param``, which store 0 in any format."""
    first = _dense(param, codec.columns[0].dtype or param.dtype)
    rest = [
        _dense(param, column.dtype or param.dtype)
        if column.block == 1
        else first.new_empty(scale_shape(param, column.block), dtype=column.dtype)
        for column in codec.columns[1:]
    ]
    return [tensor.zero_() for tensor in (first, *rest)]


def convert_state(
    state: State, state_key: str, codec: Codec, param: Tensor, start: Callable[[], Tensor | None]
) -> None:
    """Convert a state to the format ``codec``; create it from ``start()`` if it is missing.

    Args:
        state: state entries of the parameter, changed in place.
        state_key: name of the state.
        codec: target format.
        param: parameter of the state.
        start: function that returns the value of a new state; None for zeros.
    """
    keys = codec.column_keys(state_key)
    # the codes of a block are consecutive in memory: scales are valid for one layout only
    blocks = any(column.block > 1 for column in codec.columns)
    if has_columns(state, keys, codec.columns, param) and not (
        blocks and not _same_layout(state[state_key], param)
    ):
        _shape_scales(state, keys, codec.columns, param)
        return
    if state.get(state_key) is None:
        value = start()
        if value is None:
            state.update(zip(keys, allocate(codec, param), strict=True))
            return
    else:
        before = detect_format(state, state_key, param) or PLAIN
        tensors = [state.pop(name) for name in before.column_keys(state_key)]
        value = decode(before, tensors, torch.float32)
    plain = codec.columns[0].dtype is None
    tensors = [value.to(param.dtype)] if plain else encode(codec, value, param)
    state.update(zip(keys, tensors, strict=True))


def _shape_scales(
    state: State, keys: Sequence[str], columns: Sequence[ColumnSpec], param: Tensor
) -> None:
    """Give the scales of an older checkpoint the shape that those of a new state have."""
    for name, column in zip(keys, columns, strict=True):
        shape = scale_shape(param, column.block)
        if column.block > 1 and state[name].shape != shape:
            state[name] = state[name].view(shape)


@torch.no_grad()
def convert_weight(state: State, codec: Codec, param: Tensor) -> None:
    """Convert the weight of ``param`` to the format ``codec``."""
    keys = codec.extra_keys
    if keys and has_columns(state, keys, codec.columns[1:], param):
        return
    before = detect_weight_format(state, param)
    if before is PLAIN and not keys:
        return
    narrow = param.detach()
    if before is not PLAIN and param.itemsize != 2:
        narrow = param.to(torch.bfloat16)  # its value when the state was written
    rest = [state.pop(name) for name in before.extra_keys]
    value = decode(before, [narrow, *rest], torch.float32)
    # where the parameter was written since then, its value is the weight
    value = torch.where(narrow.to(param.dtype) == param, value, param.float())
    tensors = encode(codec, value, param)
    param.copy_(tensors[0])
    state.update(zip(keys, tensors[1:], strict=True))


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.preserve_format)


def _same_layout(tensor: Tensor, other: Tensor) -> bool:
    if other.is_contiguous() and tensor.is_contiguous():
        return True
    order = torch.empty_like(other, device="meta").stride()
    sizes = zip(tensor.shape, tensor.stride(), order, strict=True)
    return all(n == 1 or stride == expected for n, stride, expected in sizes)


def _as(tensor: Tensor, other: Tensor) -> Tensor:
    """Return ``tensor`` with the strides of ``other``; scales unchanged."""
    if tensor.shape != other.shape or tensor.stride() == other.stride():
        return tensor
    return _dense(other, tensor.dtype).copy_(tensor)


def _flat(tensor: Tensor) -> Tensor:
    """Return the elements of a dense tensor as one dimension, in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _pieces(codec: Codec, tensors: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield the slice of each piece of a value, and the columns of the piece.

    A value on the meta device has no pieces: there is nothing to load or store.
    """
    if tensors[0].is_meta:
        return
    columns = [(_flat(t), c.block) for t, c in zip(tensors, codec.columns, strict=True)]
    for start in range(0, tensors[0].numel(), PIECE):
        end = start + PIECE
        yield slice(start, end), [c[start // n : -(-end // n)] for c, n in columns]


def _make_noise(start: int, count: int, device: torch.device) -> Callable[[], Tensor]:
    elements = torch.arange(start, start + count, device=device)
    keys = (torch.zeros((), device=device), torch.zeros((), device=device))
    return lambda: random_bits(keys, elements, 0)
