"""Adadelta."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adadelta
from fused_optim.validation import all_of, at_most, nonnegative


class Adadelta(FusedOptimizer):
    """Adadelta with an L2 penalty: the drop-in for ``torch.optim.Adadelta``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: factor of each step; a float, or a one-element tensor that is read at each step.
        rho: decay rate of both averages, in [0, 1].
        eps: added to both averages, under the square roots, for numerical stability.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, capturable: accepted for compatibility and ignored: every step is capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``square_avg`` (average of squared gradients) and ``acc_delta`` (of squared steps) in the
    parameter's dtype, 8 bytes per element in fp32; ``step``.

    Source: Zeiler 2012, algorithm 1, https://arxiv.org/abs/1212.5701
    """

    RULE = adadelta.ADADELTA
    BOUNDS: ClassVar = {"rho": all_of(nonnegative, at_most(1)), "eps": nonnegative}

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
        defaults: Group = dict(
            lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize
        )
        defaults |= dict(capturable=capturable, foreach=foreach, differentiable=differentiable)
        super().__init__(params, defaults, additions)
