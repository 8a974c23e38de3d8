"""Adamax."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adamax
from fused_optim.rules.common import Rule


class Adamax(FusedOptimizer):
    """Adam with the infinity norm and an L2 penalty: the drop-in for ``torch.optim.Adamax``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past in the mean and in the norm, each in [0, 1).
        eps: added to the size of the gradient.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        differentiable: must be False.
        capturable: accepted, without effect: the step always is.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` and ``exp_inf`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Kingma and Ba 2015, algorithm 2, https://arxiv.org/abs/1412.6980
    """

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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group)
        options.at_least(0, eps=group["eps"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return adamax.ADAMAX

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], *group["betas"], group["eps"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return group["weight_decay"]
