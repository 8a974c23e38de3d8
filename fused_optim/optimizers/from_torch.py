"""The conversion from an optimizer of torch.optim to its fused counterpart."""

from typing import cast

import torch
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.optimizers.to_torch import clone_as, find_counterpart


def from_torch(
    optimizer: torch.optim.Optimizer, **additions: Unpack[options.Additions]
) -> FusedOptimizer:
    """Return the fused counterpart of a ``torch.optim`` optimizer, in the same state.

    The parameters and the tensors of the state are shared, not copied: use only one of the two
    optimizers afterwards. Groups are copied with all their entries, hooks are not. A scheduler
    belongs to its optimizer: create a new one, and load the ``state_dict()`` of the old one.

    Args:
        optimizer: instance of an optimizer class of ``torch.optim`` that has a counterpart here.
        additions: see :class:`fused_optim.Additions`.

    Raises:
        TypeError: there is no counterpart, or ``optimizer`` is an instance of a subclass.
        ValueError: an option is not available in a fused step, such as ``differentiable``.

    Source: torch.optim, https://docs.pytorch.org/docs/stable/optim.html
    """
    import fused_optim

    cls = find_counterpart(optimizer, torch.optim, fused_optim)
    new = cast(FusedOptimizer, clone_as(cls, optimizer, dict(additions)))
    for key, state in optimizer.state.items():
        new.state[key] = dict(state) if isinstance(state, dict) else state
    return new
