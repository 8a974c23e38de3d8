"""Adan: the same page as fused_optim/rules/adan.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, sqrt_rn


@triton.jit
def adan_no_prox_scalars(hparams, step):
    """Scalars of :func:`adan` with the decay of AdamW."""
    lr, beta1, beta2, beta3, eps, weight_decay = hparams
    return (
        tl.where(step == 1, 1.0, 0.0),
        lr * weight_decay,
        lr,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 - beta3,
        1.0 / (1.0 - pow_int(beta1, step)),
        beta2 / (1.0 - pow_int(beta2, step)),
        1.0 / sqrt_rn(1.0 - pow_int(beta3, step)),
        eps,
    )


@triton.jit
def adan_scalars(hparams, step):
    """Scalars of :func:`adan`: dividing by ``1 + lr * decay`` is AdamW's decay at a lower rate."""
    lr, beta1, beta2, beta3, eps, weight_decay = hparams
    lr = lr / (1.0 + lr * weight_decay)
    return adan_no_prox_scalars((lr, beta1, beta2, beta3, eps, weight_decay), step)


@triton.jit
def adan(p, g, state, s):
    """Adan, Xie et al. 2022, algorithm 1 (https://arxiv.org/abs/2208.06677)."""
    exp_avg, exp_avg_diff, exp_avg_sq, pre_grad = state
    (
        first,
        decay,
        lr,
        beta1,
        weight1,
        beta2,
        weight2,
        weight3,
        inv_bias1,
        diff_share,
        inv_bias3_sqrt,
        eps,
    ) = s
    diff = g - tl.where(first != 0, g, pre_grad)
    ahead = g + beta2 * diff
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_diff = beta2 * exp_avg_diff + weight2 * diff
    exp_avg_sq = decay(exp_avg_sq, weight3) + (weight3 * ahead) * ahead
    denom = sqrt_rn(exp_avg_sq) * inv_bias3_sqrt + eps
    mixed = inv_bias1 * exp_avg + diff_share * exp_avg_diff
    p = decay(p, decay) - lr * div_rn(mixed, denom)
    return p, (exp_avg, exp_avg_diff, exp_avg_sq, g)
