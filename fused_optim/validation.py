"""Which tensors an optimizer takes. A kernel sees addresses only, so all is checked before."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from fused_optim.private_api import is_wrapper
from fused_optim.rules.common import Rule

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SUPPORTED = (*FLOATING, torch.complex32, torch.complex64, torch.complex128)
# formats of 8 bits: see fused_optim/formats.py, which converts to and from them
CODES = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


def with_names(group: Any) -> Iterator[tuple[Tensor, str | None]]:
    """The parameters of a group, each with the name that it was given, if it was."""
    names = group.get("param_names", ())
    return zip_longest(group["params"], names[: len(group["params"])])


def _named(param: Tensor, group: int, name: str | None) -> str:
    called = "" if name is None else f"{name!r} "
    return f"parameter {called}of shape {tuple(param.shape)} in group {group}"


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements are known to share one memory location, as after ``expand``."""
    return any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def check_unique(group: Any, index: int) -> None:
    """Raise ValueError if a group has a parameter twice; torch only warns of it."""
    params = group.get("params") if isinstance(group, dict) else None
    if not isinstance(params, (list, tuple)):
        return  # one tensor, or what torch refuses
    found = [param[1] if isinstance(param, tuple) else param for param in params]
    if len(set(found)) != len(found):
        raise ValueError(
            "optimizer contains a parameter group with duplicate parameters; "
            f"torch only warns of them (group {index})"
        )


def why_not(param: Tensor) -> str | None:
    """What ``param`` must be or have to be updated through its address; None if all is well."""
    if param.dtype not in SUPPORTED:
        return f"be floating or complex, got {param.dtype}"
    if param.layout is not torch.strided or is_wrapper(param):
        kind = f"{type(param).__module__}.{type(param).__qualname__}, {param.layout}"
        return f"be a dense tensor with memory of its own, got {kind}"
    if _overlaps_itself(param):
        return f"have one memory location an element, got {param.stride()}"
    if param.is_conj() or param.is_neg():
        return "have its own values, got a conjugate or negative view"
    return None


def check_parameter(
    param: Tensor, group: int, name: str | None = None, also: str | None = None
) -> None:
    """Raise ValueError unless ``param`` can be updated.

    Args:
        param: a parameter.
        group: its index, for the message.
        name: that it was given, for the message.
        also: what its group asks it to be, if it is not.
    """
    reason = why_not(param)
    if reason is None and also is not None:
        reason = f"be {also}"
    if reason is not None:
        raise ValueError(f"{_named(param, group, name)} must {reason}")


def check_gradient(param: Tensor, group: int, name: str | None = None) -> None:
    """Raise unless the gradient can be read beside ``param``.

    Raises:
        RuntimeError: it is sparse.
        ValueError: another device, shape or kind of dtype.
    """
    grad: Any = param.grad
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"the gradient of the {_named(param, group, name)} is sparse ({grad.layout}): "
            "a fused step takes dense gradients only"
        )
    fits = grad.shape == param.shape and grad.device == param.device
    if not fits or grad.is_complex() != param.dtype.is_complex or grad.dtype not in SUPPORTED:
        _refuse("gradient", grad, param, _named(param, group, name))


def check_states(
    param: Tensor, state: Any, rule: Rule, group: int, name: str | None = None
) -> None:
    """Raise ValueError unless each state is missing or can be updated beside ``param``."""
    for counter in rule.scalar_state:
        value = state.get(counter)
        if isinstance(value, Tensor) and value.numel() != 1:
            what = f"the state {counter!r} of the {_named(param, group, name)}"
            raise ValueError(f"{what} must have one element, got shape {tuple(value.shape)}")
    for state_key in rule.state_keys:
        if state.get(state_key) is not None and not _fits(param, state[state_key]):
            _refuse(f"state {slot!r}", state[state_key], param, _named(param, group, name))


def _fits(param: Tensor, state: Any) -> bool:
    return (
        isinstance(state, Tensor)
        and state.shape == param.shape
        and state.device == param.device
        and state.layout is torch.strided
        and state.is_complex() == param.is_complex()
        and state.dtype in (*SUPPORTED, *CODES)
        and not (_overlaps_itself(state) or state.is_conj() or state.is_neg())
    )


def _refuse(what: str, value: Any, param: Tensor, named: str) -> None:
    got = value if not isinstance(value, Tensor) else describe(value)
    raise ValueError(f"the {what} of the {named} must match {describe(param)}, got {got}")


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device, for messages."""
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
