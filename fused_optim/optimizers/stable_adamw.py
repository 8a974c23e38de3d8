"""StableAdamW."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import stable_adamw
from fused_optim.validation import decay_rates, nonnegative


class StableAdamW(FusedOptimizer):
    """AdamW whose step is clipped tensor by tensor, by the root mean square of its update.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; divided by the root of the mean of ``g ** 2 / max(exp_avg_sq, eps ** 2)``
            over each tensor, where that is above 1.
        betas: weights of the past in the mean and in the uncentered variance, each in [0, 1); the
            weights themselves are debiased, so the moments need no correction.
        eps: added to the denominator for numerical stability.
        weight_decay: the parameter shrinks by ``weight_decay`` times its step length.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    Two launches more than an elementwise rule, and a second read of all it reads: the mean.

    State: ``exp_avg`` and ``exp_avg_sq`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step``.

    Source: Wortsman et al. 2023, algorithm 2, https://arxiv.org/abs/2304.13013
    """

    RULE = stable_adamw.STABLE_ADAMW
    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {"betas": decay_rates(2), "eps": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize
        )
        super().__init__(params, defaults, additions)
