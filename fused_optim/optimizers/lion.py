"""Lion."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import lion
from fused_optim.validation import decay_rates


class Lion(FusedOptimizer):
    """Lion: the sign of an interpolated momentum, with decoupled weight decay.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a tenth to a third of that for AdamW.
        betas: weight of the momentum in the update, and its decay rate, each in [0, 1).
        weight_decay: decoupled weight decay: each step subtracts ``lr * weight_decay * p``.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    The sign of 0 is 0, and that of NaN is NaN.

    State: ``exp_avg`` (momentum) in the parameter's dtype, 4 bytes per element in fp32.

    Source: Chen et al. 2023, algorithm 2, https://arxiv.org/abs/2302.06675
    """

    RULE = lion.LION
    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {"betas": decay_rates(2)}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, betas=betas, weight_decay=weight_decay, maximize=maximize)
        super().__init__(params, defaults, additions)
