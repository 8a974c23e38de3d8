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
    """AdamW that clips the step of each tensor by the root mean square of its update.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; divided by the root mean square over each tensor of
            ``g / max(sqrt(exp_avg_sq), eps)``, where that is above 1.
        betas: decay rates of the first and second moment estimates, each in [0, 1); the rates
            themselves are bias-corrected, so the moments need no correction.
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight decay: each step subtracts ``weight_decay * p`` times the
            divided learning rate.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    The mean costs two more kernel launches than an elementwise rule, and a second read of all
    tensors.

    State: ``exp_avg`` (first moment) and ``exp_avg_sq`` (second moment) in the parameter's dtype, 8
    bytes per element in fp32; ``step``.

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
