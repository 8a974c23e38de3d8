"""Averaged stochastic gradient descent."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import asgd
from fused_optim.rules.common import Rule


class ASGD(FusedOptimizer):
    """SGD with an average of the parameters: the drop-in for ``torch.optim.ASGD``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        lambd: shrinks ``p`` by ``lambd * eta``, and slows the steps down.
        alpha: after step t the step length ``eta`` is ``lr / (1 + lambd * lr * t) ** alpha``.
        t0: the average takes in the parameter with the weight ``1 / max(1, t - t0)``.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        differentiable: must be False.
        capturable: accepted, without effect: the step always is.
        additions: see :class:`fused_optim.Additions`.

    State: ``ax``, the average, in the parameter's dtype, 4 bytes a parameter in fp32; ``step``,
    ``eta`` and ``mu``, those of the next step.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Polyak and Juditsky 1992, https://doi.org/10.1137/0330046
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.finite(lambd=group["lambd"], alpha=group["alpha"])
        options.number("t0", group["t0"])  # Inf, never to average, is one

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return asgd.ASGD

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], group["lambd"], group["alpha"], group["t0"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return group["weight_decay"]

    def new_counter(self, name: str, group: Group) -> float:
        """See the base class."""
        return {"eta": float(group["lr"]), "mu": 1.0}.get(name, 0.0)
