"""The fused counterpart of a live optimizer of torch.optim."""

from typing import cast

import torch
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.optimizers.to_torch import clone_as, find_counterpart


def from_torch(
    optimizer: torch.optim.Optimizer, **additions: Unpack[options.Additions]
) -> FusedOptimizer:
    """Return the fused counterpart of a live ``torch.optim`` optimizer, in the same state.

    The parameters and the tensors of the state are shared, not copied: use one of the two from
    here on. Groups come along with all their entries. Hooks do not, and a scheduler stays with the
    optimizer that it was made for: make a new one, and load its ``state_dict()``.

    Args:
        optimizer: an optimizer of ``torch.optim`` that has a counterpart here, not of a subclass.
        additions: see :class:`fused_optim.Additions`.

    Raises:
        TypeError: there is no counterpart, or ``optimizer`` is of a subclass.
        ValueError: an option is not available in a fused step, such as ``differentiable``.

    Source: torch.optim, https://docs.pytorch.org/docs/stable/optim.html
    """
    import fused_optim

    cls = find_counterpart(optimizer, torch.optim, fused_optim)
    new = cast(FusedOptimizer, clone_as(cls, optimizer, dict(additions)))
    for key, state in optimizer.state.items():
        new.state[key] = dict(state) if isinstance(state, dict) else state
    return new
