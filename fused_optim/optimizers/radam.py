"""RAdam."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import radam
from fused_optim.rules.common import Rule


class RAdam(FusedOptimizer):
    """Adam with a rectified variance: the drop-in for ``torch.optim.RAdam``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past in the mean and in the uncentered variance, each in [0, 1).
        eps: added to the root of the variance.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        decoupled_weight_decay: shrink ``p`` by ``lr * weight_decay`` instead.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        capturable: accepted, without effect: the step always is.
        differentiable: must be False.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` and ``exp_avg_sq`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Liu et al. 2020, algorithm 2, https://arxiv.org/abs/1908.03265
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group)
        options.at_least(0, eps=group["eps"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return radam.RADAM

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return (group["lr"], *group["betas"], group["eps"], decay)

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0 if group["decoupled_weight_decay"] else group["weight_decay"]
