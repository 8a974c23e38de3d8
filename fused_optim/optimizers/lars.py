"""LARS."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import lars
from fused_optim.validation import nonnegative


class LARS(FusedOptimizer):
    """LARS: SGD with momentum and a learning rate for each tensor, from the norms of the tensor.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: global learning rate.
        momentum: momentum factor; the buffer accumulates steps, not gradients.
        weight_decay: adds ``weight_decay * p`` to the gradient, after the norms are taken.
        trust_coefficient: factor of the local rate ``|p| / (|g| + weight_decay * |p| + eps)``.
        eps: added to the denominator for numerical stability; see ``trust_coefficient``.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    The norms cost two more kernel launches than an elementwise rule, and a second read of all
    tensors.

    State: ``momentum_buffer`` (accumulated steps) in the parameter's dtype, 4 bytes per element in
    fp32.

    Source: You, Gitman and Ginsburg 2017, algorithm 1, https://arxiv.org/abs/1708.03888
    """

    RULE = lars.LARS
    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {
        "momentum": nonnegative,
        "trust_coefficient": nonnegative,
        "eps": nonnegative,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-1,
        momentum: float = 0.9,
        weight_decay: float = 0,
        *,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        defaults |= dict(trust_coefficient=trust_coefficient, eps=eps, maximize=maximize)
        super().__init__(params, defaults, additions)
