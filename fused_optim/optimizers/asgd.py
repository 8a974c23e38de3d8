"""Averaged stochastic gradient descent."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import asgd
from fused_optim.validation import finite, number


class ASGD(FusedOptimizer):
    """SGD with an average of the parameters: the drop-in for ``torch.optim.ASGD``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        lambd: decay: each step subtracts ``lambd * eta * p``, and ``eta`` decreases with it.
        alpha: exponent of the schedule: after step t the step size ``eta`` is
            ``lr / (1 + lambd * lr * t) ** alpha``.
        t0: step at which averaging starts: the parameter enters the average with the weight
            ``1 / max(1, t - t0)``.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, capturable: accepted for compatibility and ignored: every step is capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``ax`` (average of the parameter) in the parameter's dtype, 4 bytes per element in fp32;
    ``step``; ``eta`` (step size) and ``mu`` (weight in the average) of the next step.

    Source: Polyak and Juditsky 1992, https://doi.org/10.1137/0330046
    """

    RULE = asgd.ASGD
    BOUNDS: ClassVar = {"lambd": finite, "alpha": finite, "t0": number}

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
        defaults: Group = dict(lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay)
        defaults |= dict(foreach=foreach, maximize=maximize, differentiable=differentiable)
        defaults |= dict(capturable=capturable)
        super().__init__(params, defaults, additions)

    @override
    def new_scalar_state(self, name: str, group: Group) -> float:
        return {"eta": float(group["lr"]), "mu": 1.0}.get(name, 0.0)
