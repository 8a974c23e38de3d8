"""From a live optimizer of torch.optim to its fused namesake, and back."""

import inspect
from typing import Any, cast

import torch
from typing_extensions import Unpack

import fused_optim
from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group


def from_torch(
    optimizer: torch.optim.Optimizer, **additions: Unpack[options.Additions]
) -> FusedOptimizer:
    """The fused namesake of a live ``torch.optim`` optimizer, which goes on where that stands.

    The parameters and the tensors of the state are shared, not copied: use one of the two from
    here on. Groups come along with all their entries. Hooks do not, and a scheduler goes on with
    the optimizer that it was made for: make it anew, and load its ``state_dict()``.

    Args:
        optimizer: of a class in ``torch.optim`` that has a namesake here, not of a subclass.
        additions: see :class:`fused_optim.Additions`.

    Raises:
        TypeError: there is no namesake, or a subclass may step in a way of its own.
        ValueError: an option cannot be had in a fused step, such as ``differentiable``.

    Source: torch.optim, https://docs.pytorch.org/docs/stable/optim.html
    """
    cls = _torch_counterpart(optimizer, torch.optim, fused_optim)
    new = cast(FusedOptimizer, _clone_as(cls, optimizer, dict(additions)))
    for key, state in optimizer.state.items():
        new.state[key] = dict(state) if isinstance(state, dict) else state
    return new


def to_torch(optimizer: FusedOptimizer) -> torch.optim.Optimizer:
    """See :meth:`FusedOptimizer.to_torch`."""
    cls = _torch_counterpart(optimizer, fused_optim, torch.optim)
    _check_no_additions(optimizer)
    new = _clone_as(cls, optimizer, {})
    for group in new.param_groups:
        for param in group["params"]:
            if param in optimizer.state:
                state = _to_torch_state(optimizer.state[param], group, cls)
                new.state[param] = state
    return new


def _torch_counterpart(optimizer: Any, source: Any, target: Any) -> Any:
    """The class in ``target`` of the name of that of ``optimizer``, a class of ``source``."""
    cls = type(optimizer)
    name, here, there = cls.__name__, source.__name__, target.__name__
    if getattr(source, name, None) is not cls:
        raise TypeError(
            f"must be an optimizer of {here}, got {torch.typename(optimizer)}: "
            "a subclass may step in a way of its own"
        )
    if not hasattr(target, name):
        raise TypeError(f"{there} has no {name}")
    return getattr(target, name)


def _check_no_additions(optimizer: FusedOptimizer) -> None:
    """Raise ValueError if an option is in use that torch does not have."""
    defaults = options.GROUP_DEFAULTS
    for group in optimizer.param_groups:
        for name in group.keys() & defaults.keys() - {"backend"}:
            if group[name] != defaults[name]:
                peer = f"torch.optim.{type(optimizer).__name__}"
                raise ValueError(
                    f"{name} must be {defaults[name]!r} for {peer}, which has no such option, "
                    f"got {group[name]!r}"
                )


def _clone_as(cls: Any, optimizer: torch.optim.Optimizer, additions: Group) -> torch.optim.Optimizer:
    """An optimizer of ``cls`` with the defaults and the groups of ``optimizer``, without state."""
    known = inspect.signature(cls).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in known}
    groups = [
        {
            name: list(value) if name == "params" else value
            for name, value in group.items()
            if name not in options.GROUP_DEFAULTS
        }
        for group in optimizer.param_groups
    ]
    return cast(torch.optim.Optimizer, cls(groups, **defaults, **additions))


def _to_torch_state(state: Group, group: Group, cls: Any) -> Group:
    """``state`` without our additions, the count where torch keeps it."""
    kept = {name: value for name, value in state.items() if name != "ema"}
    step = kept.get("step")
    if cls is torch.optim.SGD and "step" in kept:
        # all steps were skipped: torch tells a first step by the missing buffer
        return {} if kept.pop("step") == 0 else kept
    if isinstance(step, torch.Tensor):
        if group.get("fused") or group.get("capturable"):
            kept["step"] = step.float()
        else:
            kept["step"] = step.cpu()
    return kept
