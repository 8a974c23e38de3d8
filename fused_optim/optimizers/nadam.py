"""NAdam."""

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import nadam
from fused_optim.rules.common import pow_real
from fused_optim.validation import decay_rates, nonnegative


@cache
def _warmup(momentum_decay: float) -> float:
    """Return ``0.96 ** momentum_decay``, the same bits on every processor."""
    base, exponent = torch.tensor([0.96, momentum_decay], dtype=torch.float64, device="cpu")
    return pow_real(base, exponent).item()


class NAdam(FusedOptimizer):
    """Adam with Nesterov momentum: the drop-in for ``torch.optim.NAdam``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        momentum_decay: decay of the momentum schedule: at step t the momentum is
            ``betas[0] * (1 - 0.96 ** (t * momentum_decay) / 2)``.
        decoupled_weight_decay: use decoupled weight decay instead of the L2 penalty: each step
            subtracts ``lr * weight_decay * p``, as in AdamW.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, capturable: accepted for compatibility and ignored: every step is capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` (first moment) and ``exp_avg_sq`` (second moment) in the parameter's dtype, 8
    bytes per element in fp32; ``step`` and ``mu_product`` (product of all momenta so far).

    Source: Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    """

    RULE = nadam.NADAM
    WEIGHT_DECAY = "switch"
    BOUNDS: ClassVar = {"betas": decay_rates(2), "eps": nonnegative, "momentum_decay": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults |= dict(momentum_decay=momentum_decay)
        defaults |= dict(decoupled_weight_decay=decoupled_weight_decay, maximize=maximize)
        defaults |= dict(foreach=foreach, capturable=capturable, differentiable=differentiable)
        super().__init__(params, defaults, additions)

    @override
    def hparams(self, group: Group) -> Any:
        return super().hparams({**group, "warmup": _warmup(float(group["momentum_decay"]))})

    @override
    def new_scalar_state(self, name: str, group: Group) -> float:
        return 1.0 if name == "mu_product" else 0.0
