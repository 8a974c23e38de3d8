"""Lion."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import lion
from fused_optim.rules.common import Rule


class Lion(FusedOptimizer):
    """Lion: the sign of an interpolated momentum, with decoupled weight decay.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a tenth to a third of what AdamW takes.
        betas: weights of the past in the update and in the momentum, each in [0, 1).
        weight_decay: the parameter shrinks by ``lr * weight_decay`` each step.
        maximize: climb instead of descend.
        additions: see :class:`fused_optim.Additions`.

    The sign of 0 is 0, and that of NaN is NaN.

    State: ``exp_avg`` in the parameter's dtype, 4 bytes a parameter in fp32.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Chen et al. 2023, algorithm 2, https://arxiv.org/abs/2302.06675
    """

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
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group)

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return lion.LION

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], *group["betas"], group["weight_decay"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0
