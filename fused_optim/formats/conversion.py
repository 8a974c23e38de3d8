"""The tensors in ``optimizer.state`` that hold a value, and the way from one format to another."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_optim.formats.codecs import Codec, ColumnSpec
from fused_optim.formats.registry import PLAIN, STATES, WEIGHTS
from fused_optim.formats.stochastic_rounding import random_bits

PIECE = 1 << 20  # elements that are converted at once, a whole number of blocks
State = dict[str, Any]


def names(state_key: str, codec: Codec) -> list[str]:
    """The entries of the state that hold ``slot``."""
    return [state_key + column.name for column in codec.columns]


def extras(codec: Codec) -> list[str]:
    """The entries of the state that hold a weight, beside the parameter."""
    return [column.name for column in codec.columns[1:]]


def fits(tensor: Any, column: ColumnSpec, param: Tensor) -> bool:
    """Whether ``tensor`` is this column of a value of ``param``."""
    if not isinstance(tensor, Tensor) or tensor.device != param.device:
        return False
    if column.block > 1:
        shape = (-(-param.numel() // column.block),)
        return tensor.dtype is column.dtype and tensor.shape == shape
    if column.dtype is None:
        return tensor.shape == param.shape and tensor.itemsize > 1 and tensor.dtype.is_signed
    return tensor.shape == param.shape and tensor.dtype is column.dtype


def holds(state: State, keys: Sequence[str], columns: Sequence[ColumnSpec], param: Tensor) -> bool:
    """Whether ``state`` has these columns of a value of ``param``."""
    return all(fits(state.get(k), c, param) for k, c in zip(keys, columns, strict=True))


def found(state: State, state_key: str, param: Tensor) -> Codec | None:
    """The format that ``slot`` is in; None without a state, or in none that is known."""
    for codec in {codec: None for pair in STATES.values() for codec in pair}:
        if holds(state, names(state_key, codec), codec.columns, param):
            return codec
    return None


def detect_weight_format(state: State, param: Tensor) -> Codec:
    """The format of the parameter, as the state has it."""
    for codec, _ in WEIGHTS.values():
        if extras(codec) and holds(state, extras(codec), codec.columns[1:], param):
            return codec
    return PLAIN


def decoded(codec: Codec, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The value in ``tensors``, laid out as the first of them."""
    value = _dense(tensors[0], dtype)
    for piece, columns in _pieces(codec, [_as(tensor, value) for tensor in tensors]):
        _flat(value)[piece] = codec.load(columns, dtype)
    return value


def encoded(codec: Codec, value: Tensor, param: Tensor) -> list[Tensor]:
    """New tensors with ``value``, laid out as ``param``."""
    tensors = empty(codec, param)
    source = _flat(_as(value, tensors[0]))
    for piece, columns in _pieces(codec, tensors):
        part = source[piece]
        noise = _noise(piece.start, len(part), value.device) if codec.stochastic else None
        codec.store(columns, part, noise)
    return tensors


def empty(codec: Codec, param: Tensor) -> list[Tensor]:
    """New tensors for a value of ``param``: zeros, which are a state of zero in any format."""
    first = _dense(param, codec.columns[0].dtype or param.dtype)
    rest = [
        _dense(param, column.dtype or param.dtype)
        if column.block == 1
        else first.new_empty(-(-param.numel() // column.block), dtype=column.dtype)
        for column in codec.columns[1:]
    ]
    return [tensor.zero_() for tensor in (first, *rest)]


def convert_state(
    state: State, state_key: str, codec: Codec, param: Tensor, start: Callable[[], Tensor | None]
) -> None:
    """Bring ``slot`` into the format ``codec``; a new one has the value ``start()``, None: zero."""
    # the codes of a block are neighbours in memory: a scale belongs to one layout
    blocks = any(column.block > 1 for column in codec.columns)
    if holds(state, names(state_key, codec), codec.columns, param) and not (
        blocks and not _same_layout(state[state_key], param)
    ):
        return
    if state.get(state_key) is None:
        value = start()
        if value is None:
            state.update(zip(names(state_key, codec), empty(codec, param), strict=True))
            return
    else:
        before = found(state, state_key, param) or PLAIN
        value = decoded(before, [state.pop(name) for name in names(state_key, before)], torch.float32)
    plain = codec.columns[0].dtype is None
    tensors = [value.to(param.dtype)] if plain else encoded(codec, value, param)
    state.update(zip(names(state_key, codec), tensors, strict=True))


@torch.no_grad()
def convert_weight(state: State, codec: Codec, param: Tensor) -> None:
    """Bring the weight of ``param`` into the format ``codec``."""
    if extras(codec) and holds(state, extras(codec), codec.columns[1:], param):
        return
    before = detect_weight_format(state, param)
    if before is PLAIN and not extras(codec):
        return
    narrow = param.detach()
    if before is not PLAIN and param.itemsize != 2:
        narrow = param.to(torch.bfloat16)  # as it was when the state was written
    rest = [state.pop(name) for name in extras(before)]
    value = decoded(before, [narrow, *rest], torch.float32)
    # a parameter that was written since is what it is
    value = torch.where(narrow.to(param.dtype) == param, value, param.float())
    tensors = encoded(codec, value, param)
    param.copy_(tensors[0])
    state.update(zip(extras(codec), tensors[1:], strict=True))


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.preserve_format)


def _same_layout(tensor: Tensor, other: Tensor) -> bool:
    if other.is_contiguous() and tensor.is_contiguous():
        return True
    order = torch.empty_like(other, device="meta").stride()
    sizes = zip(tensor.shape, tensor.stride(), order, strict=True)
    return all(n == 1 or mine == wanted for n, mine, wanted in sizes)


def _as(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor`` laid out as ``other``; scales as they are."""
    if tensor.shape != other.shape or tensor.stride() == other.stride():
        return tensor
    return _dense(other, tensor.dtype).copy_(tensor)


def _flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor, in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _pieces(codec: Codec, tensors: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Parts of a value, and the columns of each."""
    columns = [(_flat(t), c.block) for t, c in zip(tensors, codec.columns, strict=True)]
    for start in range(0, tensors[0].numel(), PIECE):
        end = start + PIECE
        yield slice(start, end), [c[start // n : -(-end // n)] for c, n in columns]


def _noise(start: int, count: int, device: torch.device) -> Callable[[], Tensor]:
    elements = torch.arange(start, start + count, device=device)
    keys = (torch.zeros((), device=device), torch.zeros((), device=device))
    return lambda: random_bits(keys, elements, 0)
