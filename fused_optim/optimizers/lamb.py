"""LAMB."""

import math
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import lamb
from fused_optim.validation import decay_rates, nonnegative


class LAMB(FusedOptimizer):
    """LAMB: Adam with a step size for each tensor, in proportion to the norm of the parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; the length of a step relative to the norm of each parameter.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay * p`` to the direction, before its norm is taken.
        norm_bounds: lower and upper bound ``(low, high)`` to which the norm of the parameter is
            clamped; the function phi of the paper.
        adapt: False sets the trust ratio to 1, as for biases and normalization layers; the rule is
            then AdamW.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    The norms cost two more kernel launches than an elementwise rule, and a second read of all
    tensors.

    State: ``exp_avg`` (first moment) and ``exp_avg_sq`` (second moment) in the parameter's dtype, 8
    bytes per element in fp32; ``step``.

    Source: You et al. 2020, algorithm 2, https://arxiv.org/abs/1904.00962
    """

    RULE = lamb.LAMB
    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {"betas": decay_rates(2), "eps": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        norm_bounds: tuple[float, float] = (0.0, math.inf),
        adapt: bool = True,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults |= dict(norm_bounds=norm_bounds, adapt=adapt, maximize=maximize)
        super().__init__(params, defaults, additions)

    @override
    def check(self, group: Group) -> None:
        low, high = group["norm_bounds"]
        if not 0 <= low <= high:
            raise ValueError(f"norm_bounds must be 0 <= low <= high, got {group['norm_bounds']!r}")

    @override
    def hparams(self, group: Group) -> Any:
        low, high = group["norm_bounds"]
        return super().hparams({**group, "low": low, "high": high})
