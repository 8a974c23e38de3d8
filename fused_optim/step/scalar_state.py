"""The 0-dim states: the step count and others that a rule advances, in the dtypes of torch."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from fused_optim.rules.common import Rule

State = MutableMapping[str, Any]


def get(
    state: State, name: str, rule: Rule, param: Tensor, start: Callable[[], float | Tensor]
) -> Tensor:
    """Return the 0-dim state ``name`` on the parameter's device; create it from ``start()``."""
    # if all states were deleted, this is a first step
    value = None if starts(state, rule) else state.get(name)
    if value is None:
        value = start()
        keys = _keys_without_ema(rule) or rule.state_keys
        if name == "step" and any(state.get(key) is not None for key in keys):
            # a state without a count was written by torch's SGD: its first step is done
            value = 1.0
    dtype = state["step"].dtype if name != "step" else _step_dtype(value)
    if not isinstance(value, Tensor) or value.device != param.device or value.dtype != dtype:
        given = value if isinstance(value, Tensor) else torch.tensor(value, device=param.device)
        value = given.to(param.device, dtype, copy=True)
    state[name] = value
    return value


def starts(state: State, rule: Rule) -> bool:
    """Return True if all states of the rule are missing; the EMA is not one of them."""
    keys = _keys_without_ema(rule)
    return bool(keys) and all(state.get(key) is None for key in keys)


def _keys_without_ema(rule: Rule) -> list[str]:
    return [key for key in rule.state_keys if key != "ema"]


def convert_numbers(param: Tensor, state: State) -> None:
    """Convert numbers to tensors: old checkpoints of torch have step counts that are numbers."""
    for name, value in state.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            state[name] = torch.tensor(float(value), dtype=_step_dtype(value), device=param.device)


def _step_dtype(step: Any) -> torch.dtype:
    """Return the dtype for a step count: unchanged if floating, else the dtype that torch uses."""
    if isinstance(step, Tensor) and step.dtype in (torch.float32, torch.float64):
        return step.dtype
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
