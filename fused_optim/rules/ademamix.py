"""AdEMAMix."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, exp, decay, pow_int, sqrt_rn


class AdEMAMixHparams(NamedTuple):
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


def ademamix_scalars(hparams: AdEMAMixHparams, step: Tensor) -> AdEMAMixScalars:
    """Scalars of :func:`ademamix` and :func:`ademamix_slow`, with both schedules."""
    lr, beta1, beta2, beta3, alpha, eps, weight_decay = hparams[:7]
    alpha_warmup, beta3_warmup, inv_log1, inv_log3 = hparams[7:]
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
        1.0 / (1.0 - pow_int(beta1, step)),
        1.0 / sqrt_rn(1.0 - pow_int(beta2, step)),
        alpha,
        eps,
    )


def ademamix(p: Tensor, g: Tensor, state: State, s: AdEMAMixScalars) -> tuple[Tensor, State]:
    """AdEMAMix, Pagliardini et al. 2024, algorithm 1 (https://arxiv.org/abs/2409.03137)."""
    exp_avg_fast, exp_avg_slow, exp_avg_sq = state
    exp_avg_fast = s.beta1 * exp_avg_fast + s.weight1 * g
    exp_avg_slow = decay(exp_avg_slow, s.weight3) + s.weight3 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias2_sqrt + s.eps
    mixed = s.inv_bias1 * exp_avg_fast + s.alpha * exp_avg_slow
    return decay(p, s.decay) - s.lr * (mixed / denom), (exp_avg_fast, exp_avg_slow, exp_avg_sq)


def ademamix_slow(p: Tensor, g: Tensor, state: State, s: AdEMAMixScalars) -> tuple[Tensor, State]:
    """AdEMAMix with beta1 = 0: the gradient itself stands where the fast average was."""
    exp_avg_slow, exp_avg_sq = state
    exp_avg_slow = decay(exp_avg_slow, s.weight3) + s.weight3 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias2_sqrt + s.eps
    mixed = g + s.alpha * exp_avg_slow
    return decay(p, s.decay) - s.lr * (mixed / denom), (exp_avg_slow, exp_avg_sq)


ADEMAMIX = Rule(
    ademamix,
    ademamix_scalars,
    AdEMAMixHparams,
    AdEMAMixScalars,
    ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta2"),),
)
ADEMAMIX_SLOW = ADEMAMIX._replace(update=ademamix_slow, state_keys=ADEMAMIX.state_keys[1:])
