"""Adan."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adan
from fused_optim.rules.common import Rule


class Adan(FusedOptimizer):
    """Adan: Nesterov momentum by differences of gradients, adaptive, with decoupled decay.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past (1 - beta in the paper) in the mean of the gradients, in that of
            their differences and in the uncentered variance, each in [0, 1).
        eps: added to the root of the variance.
        weight_decay: the parameter is divided by ``1 + lr * weight_decay`` after the step.
        no_prox: the parameter shrinks by ``lr * weight_decay`` before the step instead.
        foreach: accepted, without effect.
        fused: accepted, without effect: the step always is.
        maximize: climb instead of descend.
        additions: see :class:`fused_optim.Additions`. To clip nothing, ``max_grad_norm`` is None;
            in the authors' code it is 0.

    State: ``exp_avg``, ``exp_avg_diff``, ``exp_avg_sq`` and ``pre_grad``, the gradient before, in
    the parameter's dtype, 16 bytes a parameter in fp32; ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Xie et al. 2022, algorithm 1, https://arxiv.org/abs/2208.06677
    """

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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "no_prox": no_prox,
            "foreach": foreach,
            "fused": fused,
            "maximize": maximize,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group, 3)
        options.at_least(0, eps=group["eps"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return adan.ADAN_NO_PROX if group["no_prox"] else adan.ADAN

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], *group["betas"], group["eps"], group["weight_decay"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0
