"""Adamax."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adamax
from fused_optim.validation import decay_rates, nonnegative


class Adamax(FusedOptimizer):
    """Adam with the infinity norm and an L2 penalty: the drop-in for ``torch.optim.Adamax``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the first moment estimate and of the infinity norm, each in [0, 1).
        eps: added to the magnitude of the gradient for numerical stability.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, capturable: accepted for compatibility and ignored: every step is capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` (first moment) and ``exp_inf`` (infinity norm) in the parameter's dtype, 8
    bytes per element in fp32; ``step``.

    Source: Kingma and Ba 2015, algorithm 2, https://arxiv.org/abs/1412.6980
    """

    RULE = adamax.ADAMAX
    BOUNDS: ClassVar = {"betas": decay_rates(2), "eps": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach
        )
        defaults |= dict(maximize=maximize, differentiable=differentiable, capturable=capturable)
        super().__init__(params, defaults, additions)
