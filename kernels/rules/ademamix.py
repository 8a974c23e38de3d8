"""AdEMAMix: the same page as fused_optim/rules/ademamix.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, exp, decay, pow_int, sqrt_rn


@triton.jit
def ademamix_scalars(hparams, step):
    """Scalars of :func:`ademamix` and :func:`ademamix_slow`, with both schedules."""
    (
        lr,
        beta1,
        beta2,
        beta3,
        alpha,
        eps,
        weight_decay,
        alpha_warmup,
        beta3_warmup,
        inv_log1,
        inv_log3,
    ) = hparams
    alpha = tl.where(step < alpha_warmup, alpha * (step / alpha_warmup), alpha)
    share = step / beta3_warmup
    warm = exp(1.0 / ((1.0 - share) * inv_log1 + share * inv_log3))
    beta3 = tl.where(step < beta3_warmup, warm, beta3)
    return (
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


@triton.jit
def ademamix(p, g, state, s):
    """AdEMAMix, Pagliardini et al. 2024, algorithm 1 (https://arxiv.org/abs/2409.03137)."""
    exp_avg_fast, exp_avg_slow, exp_avg_sq = state
    decay, lr, beta1, weight1, weight2, weight3, inv_bias1, inv_bias2_sqrt, alpha, eps = s
    exp_avg_fast = beta1 * exp_avg_fast + weight1 * g
    exp_avg_slow = decay(exp_avg_slow, weight3) + weight3 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * inv_bias2_sqrt + eps
    mixed = inv_bias1 * exp_avg_fast + alpha * exp_avg_slow
    p = decay(p, decay) - lr * div_rn(mixed, denom)
    return p, (exp_avg_fast, exp_avg_slow, exp_avg_sq)


@triton.jit
def ademamix_slow(p, g, state, s):
    """AdEMAMix with beta1 = 0: the gradient itself stands where the fast average was."""
    exp_avg_slow, exp_avg_sq = state
    decay, lr, _beta1, _weight1, weight2, weight3, _inv_bias1, inv_bias2_sqrt, alpha, eps = s
    exp_avg_slow = decay(exp_avg_slow, weight3) + weight3 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * inv_bias2_sqrt + eps
    mixed = g + alpha * exp_avg_slow
    return decay(p, decay) - lr * div_rn(mixed, denom), (exp_avg_slow, exp_avg_sq)
