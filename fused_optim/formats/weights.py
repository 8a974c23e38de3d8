"""The weight of a parameter: its value, extended by the extra bits in its state entries.

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
    """Set the weight to exactly the parameter by resetting its extra bits.

    Args:
        state: state entries of the parameter.
        param: parameter whose extra bits are reset.
        own_value: value of the parameter; within ``swap_ema()`` the value from before.
    """
    codec = conversion.detect_weight_format(state, param)
    keys = codec.extra_keys
    # the extra bits of a value that the parameter represents exactly
    new = conversion.encode(codec, own_value.float(), param)[1:] if keys else []
    for name, tensor in zip(keys, new, strict=True):
        state[name].copy_(tensor)


def make_columns(
    state: State,
    param: Tensor,
    grad: Tensor,
    codecs: tuple[Codec, ...],
    state_keys: tuple[str, ...],
    start: Callable[..., Tensor | None],
) -> list[Tensor]:
    """Return parameter, gradient and states in their formats, one tensor for each column.

    Missing states are created, and states in another format are converted.

    Args:
        state: state entries of the parameter, changed in place.
        param: parameter that has a gradient; a local tensor.
        grad: its gradient.
        codecs: formats of parameter, gradient and states.
        state_keys: names of the states.
        start: function that returns the first value of a state; None for zeros.
    """
    conversion.convert_weight(state, codecs[0], param)
    columns: list[Any] = [param, *map(state.get, codecs[0].extra_keys), _resolve(grad)]
    for key, codec in zip(state_keys, codecs[2:], strict=True):
        conversion.convert_state(state, key, codec, param, partial(start, state_key=key))
        columns += map(state.get, codec.column_keys(key))
    return columns


def _resolve(gradient: Any) -> Tensor:
    """Return the gradient without lazy negation or conjugation, which a kernel does not apply.

    Autograd sets these bits for imaginary parts and for complex gradients.
    """
    resolved: Tensor = gradient.resolve_neg().resolve_conj()
    return resolved
