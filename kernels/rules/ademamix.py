"""AdEMAMix: the Triton counterpart of fused_optim/rules/ademamix.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, exp, pow_int, sqrt_rn
from fused_optim.kernels.rules.signatures import AdEMAMixHparams, AdEMAMixScalars


@triton.jit
def ademamix_scalars(hparams, step):
    """Return the scalars of :func:`ademamix` and :func:`ademamix_slow`, with both schedules."""
    hparams = AdEMAMixHparams(*hparams)
    alpha_share = step / hparams.alpha_warmup
    warm_alpha = hparams.alpha * alpha_share
    alpha = tl.where(step < hparams.alpha_warmup, warm_alpha, hparams.alpha)
    beta3_share = step / hparams.beta3_warmup
    inv_log = (1.0 - beta3_share) * hparams.inv_log1 + beta3_share * hparams.inv_log3
    beta3 = tl.where(step < hparams.beta3_warmup, exp(1.0 / inv_log), hparams.beta3)
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


@triton.jit
def ademamix(p, g, state, s):
    """AdEMAMix, Pagliardini et al. 2024, algorithm 1 (https://arxiv.org/abs/2409.03137)."""
    exp_avg_fast, exp_avg_slow, exp_avg_sq = state
    s = AdEMAMixScalars(*s)
    exp_avg_fast = s.beta1 * exp_avg_fast + s.weight1 * g
    exp_avg_slow = decay(exp_avg_slow, s.weight3) + s.weight3 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    numerator = s.inv_bias_correction1 * exp_avg_fast + s.slow_weight * exp_avg_slow
    p = decay(p, s.decay) - s.lr * div_rn(numerator, denom)
    return p, (exp_avg_fast, exp_avg_slow, exp_avg_sq)


@triton.jit
def ademamix_slow(p, g, state, s):
    """AdEMAMix with beta1 = 0: the gradient itself is the fast average."""
    exp_avg_slow, exp_avg_sq = state
    s = AdEMAMixScalars(*s)
    exp_avg_slow = decay(exp_avg_slow, s.weight3) + s.weight3 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    numerator = g + s.slow_weight * exp_avg_slow
    return decay(p, s.decay) - s.lr * div_rn(numerator, denom), (exp_avg_slow, exp_avg_sq)
