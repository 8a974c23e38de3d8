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
    """LAMB: Adam's direction, with the length that the norm of each tensor gives it.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length relative to the norm of each parameter.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay * p`` to the direction, before its norm is taken.
        norm_bounds: the parameter's norm counts as at least the first and at most the second, the
            paper's phi.
        adapt: False leaves the trust ratio at 1, as for biases and norms; the rule is then AdamW.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    Two launches more than an elementwise rule, and a second read of all it reads: the norms.

    State: ``exp_avg`` and ``exp_avg_sq`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step``.

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
