"""AdEMAMix."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import AdEMAMixHparams, AdEMAMixScalars
from fused_optim.rules.common import Rule, State, decay, exp, pow_int, sqrt_rn


def ademamix_scalars(hparams: AdEMAMixHparams, step: Tensor) -> AdEMAMixScalars:
    """Return the scalars of :func:`ademamix` and :func:`ademamix_slow`, with both schedules."""
    alpha_share = step / hparams.alpha_warmup
    warm_alpha = hparams.alpha * alpha_share
    alpha = torch.where(step < hparams.alpha_warmup, warm_alpha, hparams.alpha)
    beta3_share = step / hparams.beta3_warmup
    inv_log = (1.0 - beta3_share) * hparams.inv_log1 + beta3_share * hparams.inv_log3
    beta3 = torch.where(step < hparams.beta3_warmup, exp(1.0 / inv_log), hparams.beta3)
    return AdEMAMixScalars(
        decay=hparams.lr * hparams.weight_decay,
        lr=hparams.lr,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        weight3=1.0 - beta3,
        inv_bias_correction1=1.0 / (1.0 - pow_int(hparams.beta1, step)),
        inv_bias_correction2_sqrt=1.0 / sqrt_rn(1.0 - pow_int(hparams.beta2, step)),
        slow_weight=alpha,
        eps=hparams.eps,
    )


def ademamix(p: Tensor, g: Tensor, state: State, s: AdEMAMixScalars) -> tuple[Tensor, State]:
    """AdEMAMix, Pagliardini et al. 2024, algorithm 1 (https://arxiv.org/abs/2409.03137)."""
    exp_avg_fast, exp_avg_slow, exp_avg_sq = state
    exp_avg_fast = s.beta1 * exp_avg_fast + s.weight1 * g
    exp_avg_slow = decay(exp_avg_slow, s.weight3) + s.weight3 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    numerator = s.inv_bias_correction1 * exp_avg_fast + s.slow_weight * exp_avg_slow
    return decay(p, s.decay) - s.lr * (numerator / denom), (exp_avg_fast, exp_avg_slow, exp_avg_sq)


def ademamix_slow(p: Tensor, g: Tensor, state: State, s: AdEMAMixScalars) -> tuple[Tensor, State]:
    """AdEMAMix with beta1 = 0: the gradient itself is the fast average."""
    exp_avg_slow, exp_avg_sq = state
    exp_avg_slow = decay(exp_avg_slow, s.weight3) + s.weight3 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    numerator = g + s.slow_weight * exp_avg_slow
    return decay(p, s.decay) - s.lr * (numerator / denom), (exp_avg_slow, exp_avg_sq)


ADEMAMIX = Rule(
    ademamix,
    ademamix_scalars,
    AdEMAMixHparams,
    AdEMAMixScalars,
    ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta2"),),
    decays=True,
)
ADEMAMIX_SLOW = ADEMAMIX._replace(update=ademamix_slow, state_keys=ADEMAMIX.state_keys[1:])
