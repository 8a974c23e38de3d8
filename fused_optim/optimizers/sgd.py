"""Stochastic gradient descent."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import sgd
from fused_optim.rules.common import Rule
from fused_optim.validation import finite, nonnegative


class SGD(FusedOptimizer):
    """SGD with momentum and an L2 penalty: the drop-in for ``torch.optim.SGD``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        momentum: momentum factor.
        dampening: dampening for momentum: a gradient enters the buffer with the weight
            ``1 - dampening``, the first one with the weight 1.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        nesterov: use Nesterov momentum.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, fused: accepted for compatibility and ignored: every step is fused.
        additions: see :class:`fused_optim.Additions`.

    State: with momentum, ``momentum_buffer`` in the parameter's dtype, 4 bytes per element in fp32.
    With dampening also ``step``, which torch does not have: only a count on the device shows
    whether the first step was skipped.

    Source: torch.optim.SGD, https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html;
    nesterov: Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html
    """

    BOUNDS: ClassVar = {"momentum": nonnegative, "dampening": finite}

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
        defaults: Group = dict(
            lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay
        )
        defaults |= dict(nesterov=nesterov, maximize=maximize, foreach=foreach)
        defaults |= dict(differentiable=differentiable, fused=fused)
        super().__init__(params, defaults, additions)

    @override
    def check(self, group: Group) -> None:
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening: "
                "nesterov needs momentum > 0 and dampening = 0, got "
                f"momentum {group['momentum']!r} and dampening {group['dampening']!r}"
            )

    @override
    def rule(self, group: Group) -> Rule:
        if group["momentum"] == 0:
            return sgd.SGD
        if group["nesterov"]:
            return sgd.SGD_NESTEROV
        return sgd.SGD_DAMPENED if group["dampening"] else sgd.SGD_MOMENTUM
