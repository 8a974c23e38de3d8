"""AdEMAMix."""

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import ademamix
from fused_optim.rules.common import Rule, log
from fused_optim.validation import at_least, decay_rates, nonnegative, optional


@cache
def _inverse_log(beta: float) -> float:
    """Return ``1 / ln(beta)``, the same bits on every processor; the limit 0 for ``beta`` = 0."""
    if beta == 0:
        return 0.0
    return 1.0 / log(torch.tensor(beta, dtype=torch.float64, device="cpu")).item()


class AdEMAMix(FusedOptimizer):
    """AdEMAMix: AdamW with a second, slow average of the gradients in addition to the fast one.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the fast average, of the second moment estimate and of the slow
            average, each in [0, 1).
        alpha: weight of the slow average, which is not bias-corrected.
        beta3_warmup: number of steps in which ``betas[2]`` grows from ``betas[0]``, linearly in
            the half-life of the average; None starts with ``betas[2]``.
        alpha_warmup: number of steps in which ``alpha`` grows linearly from 0; None starts with
            ``alpha``.
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight decay: each step subtracts ``lr * weight_decay * p``.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg_fast`` (fast average; not with ``betas[0] = 0``), ``exp_avg_slow`` (slow
    average) and ``exp_avg_sq`` (second moment) in the parameter's dtype, 12 (8) bytes per element
    in fp32; ``step``.

    Source: Pagliardini et al. 2024, algorithm 1, https://arxiv.org/abs/2409.03137
    """

    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {
        "betas": decay_rates(3),
        "eps": nonnegative,
        "alpha": nonnegative,
        "beta3_warmup": optional(at_least(1)),
        "alpha_warmup": optional(at_least(1)),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: float | None = None,
        alpha_warmup: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, betas=betas, alpha=alpha, beta3_warmup=beta3_warmup)
        defaults |= dict(alpha_warmup=alpha_warmup, eps=eps, weight_decay=weight_decay)
        defaults |= dict(maximize=maximize)
        super().__init__(params, defaults, additions)

    @override
    def check(self, group: Group) -> None:
        if group["beta3_warmup"] is not None and not group["betas"][2] > group["betas"][0]:
            raise ValueError(f"beta3_warmup needs betas[2] > betas[0], got {group['betas']!r}")

    @override
    def rule(self, group: Group) -> Rule:
        return ademamix.ADEMAMIX_SLOW if group["betas"][0] == 0 else ademamix.ADEMAMIX

    @override
    def hparams(self, group: Group) -> Any:
        # a warmup of one step is no warmup: it ends before the first step
        own = {name: group[name] or 1 for name in ("alpha_warmup", "beta3_warmup")}
        inv_log1 = inv_log3 = -1.0
        if group["beta3_warmup"]:
            inv_log1, inv_log3 = (_inverse_log(float(group["betas"][i])) for i in (0, 2))
        return super().hparams({**group, **own, "inv_log1": inv_log1, "inv_log3": inv_log3})
