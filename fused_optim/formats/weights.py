"""The weight of a parameter: its value together with the state entries that extend it.

A bf16 or fp16 parameter may have more bits in its state (``master``, ``remainder``,
``compensation``): see ``weights=`` in :class:`fused_optim.options.Additions`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_optim.formats import conversion
from fused_optim.formats.codecs import Codec
from fused_optim.formats.conversion import State


def load_weight(state: State, param: Tensor) -> Tensor:
    """Return a copy of the weight: float32 if it has more bits than ``param``, else its dtype."""
    codec = conversion.detect_weight_format(state, param)
    if not codec.extra_keys:
        return param.detach().clone()
    rest = [state[name] for name in codec.extra_keys]
    return conversion.decode(codec, [param.detach(), *rest], torch.float32)


def store_weight(state: State, param: Tensor, value: Tensor) -> None:
    """Write ``value`` to the parameter and to the entries that extend it, in place."""
    codec = conversion.detect_weight_format(state, param)
    columns = [param, *map(state.get, codec.extra_keys)]
    for old, new in zip(columns, conversion.encode(codec, value, param), strict=True):
        assert old is not None
        old.copy_(new)


def reset_extra_bits(state: State, param: Tensor, own_value: Tensor) -> None:
    """Make the weight exactly the parameter: drop the bits that extend it.

    Args:
        state: entries of the parameter.
        param: the parameter.
        own_value: its value, where ``swap_ema()`` has put another into it.
    """
    codec = conversion.detect_weight_format(state, param)
    keys = codec.extra_keys
    # an encoded value that the parameter represents exactly has these extra bits
    new = conversion.encode(codec, own_value.float(), param)[1:] if keys else []
    for name, tensor in zip(keys, new, strict=True):
        state[name].copy_(tensor)


def make_columns(
    state: State,
    param: Tensor,
    codecs: tuple[Codec, ...],
    state_keys: tuple[str, ...],
    start: Callable[..., Tensor | None],
) -> list[Tensor]:
    """Return parameter, gradient and states in their formats, one tensor a column.

    Missing states are created, and those in another format are converted.

    Args:
        state: entries of the parameter.
        param: the parameter, with a gradient.
        codecs: formats of parameter, gradient and states.
        state_keys: names of the states.
        start: returns the first value of a state; None for zeros.
    """
    conversion.convert_weight(state, codecs[0], param)
    columns: list[Any] = [param, *map(state.get, codecs[0].extra_keys), _resolve(param.grad)]
    for key, codec in zip(state_keys, codecs[2:], strict=True):
        conversion.convert_state(state, key, codec, param, partial(start, state_key=key))
        columns += map(state.get, codec.column_keys(key))
    return columns


def _resolve(gradient: Any) -> Tensor:
    """Return the gradient as it is in memory: a copy where torch negates or conjugates on reading.

    Autograd leaves that to the reader of imaginary parts and of complex gradients.
    """
    resolved: Tensor = gradient.resolve_neg().resolve_conj()
    return resolved
