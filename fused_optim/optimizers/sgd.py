"""Stochastic gradient descent."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import sgd
from fused_optim.rules.common import Rule


class SGD(FusedOptimizer):
    """SGD with momentum and an L2 penalty: the drop-in for ``torch.optim.SGD``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        momentum: weight of the past in the buffer.
        dampening: the gradient enters the buffer with ``1 - dampening``, the first one with 1.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        nesterov: look ahead by the momentum.
        maximize: climb instead of descend.
        foreach: accepted, without effect.
        differentiable: must be False.
        fused: accepted, without effect: the step always is.
        additions: see :class:`fused_optim.Additions`.

    State: with momentum, ``momentum_buffer`` in the parameter's dtype, 4 bytes a parameter in fp32.
    With dampening also ``step``, which torch does not keep: only a count on the device can tell
    whether the first step was skipped.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: torch.optim.SGD, https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html;
    nesterov: Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.at_least(0, momentum=group["momentum"])
        options.finite(dampening=group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening: "
                "nesterov needs momentum > 0 and dampening = 0, got "
                f"momentum {group['momentum']!r} and dampening {group['dampening']!r}"
            )

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        if group["momentum"] == 0:
            return sgd.SGD
        if group["nesterov"]:
            return sgd.SGD_NESTEROV
        return sgd.SGD_DAMPENED if group["dampening"] else sgd.SGD_MOMENTUM

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], group["momentum"], group["dampening"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return group["weight_decay"]
