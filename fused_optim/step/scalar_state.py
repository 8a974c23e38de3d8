"""Counts of steps, and what else a rule keeps in 0-dim tensors, as torch has them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_optim.rules.common import Rule

State = dict[str, Any]


def fitted(
    state: State, name: str, rule: Rule, param: Tensor, start: Callable[[], float | Tensor]
) -> Tensor:
    """The counter ``name`` of ``state``, on the parameter's device; a new one is ``start()``."""
    # who takes the state away wants a first step
    value = None if begins(state, rule) else state.get(name)
    if value is None:
        value = start()
        state_keys = own_slots(rule) or rule.state_keys
        if name == "step" and any(state.get(state_key) is not None for state_key in state_keys):
            # a state without a count is one that torch's SGD wrote: its first step is done
            value = 1.0
    dtype = state["step"].dtype if name != "step" else _dtype(value)
    if not isinstance(value, Tensor) or value.device != param.device or value.dtype != dtype:
        given = value if isinstance(value, Tensor) else torch.tensor(value, device=param.device)
        value = given.to(param.device, dtype, copy=True)
    state[name] = value
    return value


def begins(state: State, rule: Rule) -> bool:
    """Whether none of the rule's states is there; an average is not of the rule."""
    state_keys = own_slots(rule)
    return bool(state_keys) and all(state.get(state_key) is None for state_key in state_keys)


def own_slots(rule: Rule) -> list[str]:
    """The states of a rule without the average."""
    return [state_key for state_key in rule.state_keys if state_key != "ema"]


def as_tensors(param: Tensor, state: State) -> None:
    """Turn numbers into tensors: old checkpoints of torch have counts that are numbers."""
    for name, value in state.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            state[name] = torch.tensor(float(value), dtype=_dtype(value), device=param.device)


def _dtype(step: Any) -> torch.dtype:
    """What torch keeps a count in: the dtype it came with, else by the default dtype."""
    if isinstance(step, Tensor) and step.dtype in (torch.float32, torch.float64):
        return step.dtype
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
