"""AdEMAMix."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, exp, keep, power, root


class AdEMAMixHyper(NamedTuple):
    """Options of AdEMAMix; ``weight_decay`` is the decoupled one.

    A warmup of 1 step is none; ``inv_log1`` and ``inv_log3`` are ``1 / ln(beta)``.
    """

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    beta3: Tensor
    alpha: Tensor
    eps: Tensor
    weight_decay: Tensor
    alpha_warmup: Tensor
    beta3_warmup: Tensor
    inv_log1: Tensor
    inv_log3: Tensor


class AdEMAMixScalars(NamedTuple):
    """Scalars of :func:`ademamix` and :func:`ademamix_slow`."""

    decay: Tensor
    lr: Tensor
    beta1: Tensor
    weight1: Tensor
    weight2: Tensor
    weight3: Tensor
    inv_bias1: Tensor
    inv_bias2_sqrt: Tensor
    alpha: Tensor
    eps: Tensor


def ademamix_scalars(hyper: AdEMAMixHyper, step: Tensor) -> AdEMAMixScalars:
    """Scalars of :func:`ademamix` and :func:`ademamix_slow`, with both schedules."""
    lr, beta1, beta2, beta3, alpha, eps, weight_decay = hyper[:7]
    alpha_warmup, beta3_warmup, inv_log1, inv_log3 = hyper[7:]
    alpha = torch.where(step < alpha_warmup, alpha * (step / alpha_warmup), alpha)
    share = step / beta3_warmup
    warm = exp(1.0 / ((1.0 - share) * inv_log1 + share * inv_log3))
    beta3 = torch.where(step < beta3_warmup, warm, beta3)
    return AdEMAMixScalars(
        lr * weight_decay,
        lr,
        beta1,
        1.0 - beta1,
        1.0 - beta2,
        1.0 - beta3,
        1.0 / (1.0 - power(beta1, step)),
        1.0 / root(1.0 - power(beta2, step)),
        alpha,
        eps,
    )


def ademamix(p: Tensor, g: Tensor, state: State, h: AdEMAMixScalars) -> tuple[Tensor, State]:
    """AdEMAMix, Pagliardini et al. 2024, algorithm 1 (https://arxiv.org/abs/2409.03137)."""
    exp_avg_fast, exp_avg_slow, exp_avg_sq = state
    exp_avg_fast = h.beta1 * exp_avg_fast + h.weight1 * g
    exp_avg_slow = keep(exp_avg_slow, h.weight3) + h.weight3 * g
    exp_avg_sq = keep(exp_avg_sq, h.weight2) + (h.weight2 * g) * g
    denom = root(exp_avg_sq) * h.inv_bias2_sqrt + h.eps
    mixed = h.inv_bias1 * exp_avg_fast + h.alpha * exp_avg_slow
    return keep(p, h.decay) - h.lr * (mixed / denom), (exp_avg_fast, exp_avg_slow, exp_avg_sq)


def ademamix_slow(p: Tensor, g: Tensor, state: State, h: AdEMAMixScalars) -> tuple[Tensor, State]:
    """AdEMAMix with beta1 = 0: the gradient itself stands where the fast average was."""
    exp_avg_slow, exp_avg_sq = state
    exp_avg_slow = keep(exp_avg_slow, h.weight3) + h.weight3 * g
    exp_avg_sq = keep(exp_avg_sq, h.weight2) + (h.weight2 * g) * g
    denom = root(exp_avg_sq) * h.inv_bias2_sqrt + h.eps
    mixed = g + h.alpha * exp_avg_slow
    return keep(p, h.decay) - h.lr * (mixed / denom), (exp_avg_slow, exp_avg_sq)


ADEMAMIX = Rule(
    ademamix,
    ademamix_scalars,
    AdEMAMixHyper,
    AdEMAMixScalars,
    ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
    counters=("step",),
    unsigned=(("exp_avg_sq", "beta2"),),
)
ADEMAMIX_SLOW = ADEMAMIX._replace(update=ademamix_slow, slots=ADEMAMIX.slots[1:])
