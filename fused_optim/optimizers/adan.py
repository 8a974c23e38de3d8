"""Adan."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adan
from fused_optim.rules.common import Rule
from fused_optim.validation import decay_rates, nonnegative


class Adan(FusedOptimizer):
    """Adan: adaptive Nesterov momentum from differences of gradients, with decoupled weight decay.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates (1 - beta in the paper) of the averages of the gradients, of their
            differences and of the second moment, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: the parameter is divided by ``1 + lr * weight_decay`` after the step.
        no_prox: multiply the parameter by ``1 - lr * weight_decay`` before the step instead.
        maximize: maximize the objective.
        foreach, fused: accepted for compatibility and ignored: every step is fused.
        additions: see :class:`fused_optim.Additions`. ``max_grad_norm=None`` disables clipping; in
            the authors' code 0 does.

    State: ``exp_avg`` (first moment), ``exp_avg_diff`` (average of gradient differences),
    ``exp_avg_sq`` (second moment) and ``pre_grad`` (last gradient) in the parameter's dtype, 16
    bytes per element in fp32; ``step``.

    Source: Xie et al. 2022, algorithm 1, https://arxiv.org/abs/2208.06677
    """

    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {"betas": decay_rates(3), "eps": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        no_prox: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_prox=no_prox
        )
        defaults |= dict(foreach=foreach, fused=fused, maximize=maximize)
        super().__init__(params, defaults, additions)

    @override
    def rule(self, group: Group) -> Rule:
        return adan.ADAN_NO_PROX if group["no_prox"] else adan.ADAN
