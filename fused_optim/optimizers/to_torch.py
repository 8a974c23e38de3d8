"""The conversion from a fused optimizer to its counterpart in torch.optim."""

import inspect
from typing import Any, cast

import torch

from fused_optim import options

Group = dict[str, Any]


def to_torch(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the counterpart in ``torch.optim`` of a fused optimizer, in the same state.

    The parameters and the tensors of the state are shared, not copied: use only one of the two
    optimizers afterwards. Hooks and schedulers are not copied.

    Args:
        optimizer: instance of an optimizer class of this library that has a counterpart.

    Raises:
        TypeError: there is no counterpart, or ``optimizer`` is an instance of a subclass.
        ValueError: an option that torch does not have differs from its default.

    Source: torch.optim, https://docs.pytorch.org/docs/stable/optim.html
    """
    import fused_optim

    cls = find_counterpart(optimizer, fused_optim, torch.optim)
    _check_no_additions(optimizer)
    new = clone_as(cls, optimizer, {})
    for group in new.param_groups:
        for param in group["params"]:
            if param in optimizer.state:
                new.state[param] = _to_torch_state(optimizer.state[param], group, cls)
    return new


def find_counterpart(optimizer: Any, source: Any, target: Any) -> Any:
    """Return the class in ``target`` that has the name of the optimizer's class in ``source``.

    Raises:
        TypeError: the class is not in ``source``, or ``target`` has no class of its name.
    """
    cls = type(optimizer)
    name, here, there = cls.__name__, source.__name__, target.__name__
    if getattr(source, name, None) is not cls:
        raise TypeError(
            f"must be an optimizer of {here}, got {torch.typename(optimizer)}: convert an instance "
            "of the class itself, as a subclass may override the step"
        )
    if not hasattr(target, name):
        raise TypeError(f"{there} has no {name}")
    return getattr(target, name)


def clone_as(cls: Any, optimizer: torch.optim.Optimizer, additions: Group) -> torch.optim.Optimizer:
    """Return an instance of ``cls`` with the defaults and groups of ``optimizer``, stateless."""
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


def _check_no_additions(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if an option that torch does not have differs from its default."""
    defaults = options.GROUP_DEFAULTS
    for group in optimizer.param_groups:
        for name in group.keys() & defaults.keys() - {"backend"}:
            if group[name] != defaults[name]:
                peer = f"torch.optim.{type(optimizer).__name__}"
                raise ValueError(
                    f"{name} must be {defaults[name]!r} for {peer}, which has no such option, "
                    f"got {group[name]!r}"
                )


def _to_torch_state(state: Group, group: Group, cls: Any) -> Group:
    """Return ``state`` without the EMA, and the step count on the device that torch uses."""
    own = {name: value for name, value in state.items() if name != "ema"}
    step = own.get("step")
    if cls is torch.optim.SGD and "step" in own:
        # if all steps were skipped, return no buffer: torch takes the next step for the first
        return {} if own.pop("step") == 0 else own
    if cls is torch.optim.SparseAdam and "step" in own:
        own["step"] = int(own["step"])
        return own
    if isinstance(step, torch.Tensor):
        if group.get("fused") or group.get("capturable"):
            own["step"] = step.float()
        else:
            own["step"] = step.cpu()
    return own
