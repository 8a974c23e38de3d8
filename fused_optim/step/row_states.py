"""The states of a step on matrices: one float32 for each row of a matrix."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from fused_optim.dtensors import to_local, wrap_rows
from fused_optim.rules.common import Rule

State = MutableMapping[str, Any]


def get_row_states(state: State, rule: Rule, param: Tensor) -> tuple[Tensor, ...]:
    """Return the states of the rule's step on matrices; those that are missing start as zeros.

    Args:
        state: state entries of the parameter, changed in place.
        rule: rule of its group.
        param: parameter, ``[..., rows, columns]``; a state is ``[..., rows, 1]``, and a DTensor if
            the parameter is one.

    Raises:
        ValueError: a state has another shape.
    """
    step = rule.matrix_step
    if step is None or not step.row_states:
        return ()
    local = to_local(param)
    shape = step.row_shape(local.shape)
    for name in step.row_states:
        given = state.get(name)
        if given is None:
            value = torch.zeros(shape, dtype=torch.float32, device=local.device)
        elif tuple(given.shape) != shape:
            raise ValueError(
                f"the state {name!r} of a parameter of shape {tuple(local.shape)} must have shape "
                f"{shape}, got {tuple(given.shape)}"
            )
        else:  # as loading may have left it
            value = given.to(local.device, torch.float32).contiguous()
        if value is not given:
            state[name] = wrap_rows(value, param, step.row_dims)
    return tuple(state[name] for name in step.row_states)
