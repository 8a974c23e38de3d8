"""The states of a step on matrices: one float32 for each row of a matrix."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from fused_optim.rules.common import Rule

State = MutableMapping[str, Any]


def get_row_states(state: State, rule: Rule, param: Tensor) -> tuple[Tensor, ...]:
    """Return the states of the rule's step on matrices; those that are missing start as zeros.

    Args:
        state: state entries of the parameter, changed in place.
        rule: rule of its group.
        param: parameter, ``[..., rows, columns]``; a state is ``[..., rows, 1]``.

    Raises:
        ValueError: a state has another shape.
    """
    step = rule.matrix_step
    if step is None or not step.row_states:
        return ()
    first = (step.cut.batch_dims or 0) + 1
    shape = (*param.shape[:first], *[1] * (param.dim() - first))
    for name in step.row_states:
        value = state.get(name)
        if value is None:
            state[name] = torch.zeros(shape, dtype=torch.float32, device=param.device)
        elif tuple(value.shape) != shape:
            raise ValueError(
                f"the state {name!r} of a parameter of shape {tuple(param.shape)} must have shape "
                f"{shape}, got {tuple(value.shape)}"
            )
        else:  # as loading may have left it
            state[name] = value.to(param.device, torch.float32).contiguous()
    return tuple(state[name] for name in step.row_states)
