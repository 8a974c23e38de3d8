"""NAdam."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import nadam
from fused_optim.rules.common import Rule, pow_real


@cache
def _warmup(momentum_decay: float) -> float:
    """``0.96 ** momentum_decay``, whose last bit Python leaves to the processor."""
    base, exponent = torch.tensor([0.96, momentum_decay], dtype=torch.float64, device="cpu")
    return pow_real(base, exponent).item()


class NAdam(FusedOptimizer):
    """Adam with Nesterov momentum: the drop-in for ``torch.optim.NAdam``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past in the mean and in the uncentered variance, each in [0, 1).
        eps: added to the root of the variance.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        momentum_decay: at step t the momentum is
            ``betas[0] * (1 - 0.96 ** (t * momentum_decay) / 2)``.
        decoupled_weight_decay: shrink ``p`` by ``lr * weight_decay`` instead.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        capturable: accepted, without effect: the step always is.
        differentiable: must be False.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` and ``exp_avg_sq`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step`` and ``mu_product``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group)
        options.at_least(0, eps=group["eps"], momentum_decay=group["momentum_decay"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return nadam.NADAM

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        warmup = _warmup(float(group["momentum_decay"]))
        decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return (group["lr"], *group["betas"], group["eps"], warmup, decay)

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0 if group["decoupled_weight_decay"] else group["weight_decay"]

    def new_counter(self, name: str, group: Group) -> float:
        """See the base class."""
        return 1.0 if name == "mu_product" else 0.0
