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
    """LARS: SGD with momentum, with a learning rate that the norms of each tensor set.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: global learning rate.
        momentum: weight of the past in the buffer, which holds steps, not gradients.
        weight_decay: adds ``weight_decay * p`` to the gradient, after the norms are taken.
        trust_coefficient: the local rate is this times ``|p| / (|g| + weight_decay * |p| + eps)``.
        eps: see ``trust_coefficient``.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    Two launches more than an elementwise rule, and a second read of all it reads: the norms.

    State: ``momentum_buffer`` in the parameter's dtype, 4 bytes a parameter in fp32.

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
