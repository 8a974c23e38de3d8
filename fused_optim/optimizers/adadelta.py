"""Adadelta."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adadelta
from fused_optim.rules.common import Rule


class Adadelta(FusedOptimizer):
    """Adadelta with an L2 penalty: the drop-in for ``torch.optim.Adadelta``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: scales each step; a float, or a tensor of one element that is read at each step.
        rho: weight of the past in both averages, in [0, 1].
        eps: added to both averages, under the roots.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        foreach: accepted, without effect.
        capturable: accepted, without effect: the step always is.
        maximize: climb instead of descend.
        differentiable: must be False.
        additions: see :class:`fused_optim.Additions`.

    State: ``square_avg`` and ``acc_delta`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Zeiler 2012, algorithm 1, https://arxiv.org/abs/1212.5701
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.at_least(0, rho=group["rho"], eps=group["eps"])
        options.at_most(1, rho=group["rho"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return adadelta.ADADELTA

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], group["rho"], group["eps"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return group["weight_decay"]
