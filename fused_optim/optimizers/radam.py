"""RAdam."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import radam
from fused_optim.validation import decay_rates, nonnegative


class RAdam(FusedOptimizer):
    """Adam with a rectified variance: the drop-in for ``torch.optim.RAdam``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        decoupled_weight_decay: use decoupled weight decay instead of the L2 penalty: each step
            subtracts ``lr * weight_decay * p``, as in AdamW.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, capturable: accepted for compatibility and ignored: every step is capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` (first moment) and ``exp_avg_sq`` (second moment) in the parameter's dtype, 8
    bytes per element in fp32; ``step``.

    Source: Liu et al. 2020, algorithm 2, https://arxiv.org/abs/1908.03265
    """

    RULE = radam.RADAM
    WEIGHT_DECAY = "switch"
    BOUNDS: ClassVar = {"betas": decay_rates(2), "eps": nonnegative}

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
        defaults: Group = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize
        )
        defaults |= dict(foreach=foreach, capturable=capturable)
        defaults |= dict(decoupled_weight_decay=decoupled_weight_decay)
        defaults |= dict(differentiable=differentiable)
        super().__init__(params, defaults, additions)
