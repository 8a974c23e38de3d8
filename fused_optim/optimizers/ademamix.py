"""AdEMAMix."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import ademamix
from fused_optim.rules.common import Rule, log


@cache
def _inverse_log(beta: float) -> float:
    """``1 / ln(beta)``, whose last bit ``math.log`` leaves to the processor; 0 for 0, its limit."""
    if beta == 0:
        return 0.0
    return 1.0 / log(torch.tensor(beta, dtype=torch.float64, device="cpu")).item()


class AdEMAMix(FusedOptimizer):
    """AdEMAMix: AdamW with a second, slow average of the gradients beside the fast one.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past in the fast mean, in the uncentered variance and in the slow
            mean, each in [0, 1).
        alpha: weight of the slow mean, which is not bias-corrected.
        beta3_warmup: steps in which ``betas[2]`` grows from ``betas[0]``, linearly in the half-life
            of the average; None starts with ``betas[2]``.
        alpha_warmup: steps in which ``alpha`` grows linearly from 0; None starts with ``alpha``.
        eps: added to the root of the variance.
        weight_decay: the parameter shrinks by ``lr * weight_decay`` each step.
        maximize: climb instead of descend.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg_fast`` (not with ``betas[0] = 0``), ``exp_avg_slow`` and ``exp_avg_sq`` in the
    parameter's dtype, 12 (8) bytes a parameter in fp32; ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Pagliardini et al. 2024, algorithm 1, https://arxiv.org/abs/2409.03137
    """

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
        defaults = {
            "lr": lr,
            "betas": betas,
            "alpha": alpha,
            "beta3_warmup": beta3_warmup,
            "alpha_warmup": alpha_warmup,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group, 3)
        options.at_least(0, eps=group["eps"], alpha=group["alpha"])
        for name in ("beta3_warmup", "alpha_warmup"):
            if group[name] is not None:
                options.at_least(1, **{name: group[name]})
        if group["beta3_warmup"] is not None and not group["betas"][2] > group["betas"][0]:
            raise ValueError(f"beta3_warmup needs betas[2] > betas[0], got {group['betas']!r}")

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return ademamix.ADEMAMIX_SLOW if group["betas"][0] == 0 else ademamix.ADEMAMIX

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        lr, betas, alpha = group["lr"], group["betas"], group["alpha"]
        # a warmup of one step is none: the first step is already past it
        warmups = (group["alpha_warmup"] or 1, group["beta3_warmup"] or 1)
        inv_logs = [-1.0, -1.0]
        if group["beta3_warmup"]:
            inv_logs = [_inverse_log(float(beta)) for beta in (betas[0], betas[2])]
        return (lr, *betas, alpha, group["eps"], group["weight_decay"], *warmups, *inv_logs)

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0
