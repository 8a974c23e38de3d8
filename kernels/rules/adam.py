"""Adam and AMSGrad: the same page as fused_optim/rules/adam.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, sqrt_rn


@triton.jit
def adam_scalars(hparams, step):
    """Scalars of :func:`adam` and :func:`adam_amsgrad`."""
    lr, beta1, beta2, eps, weight_decay = hparams
    decay = lr * weight_decay
    step_size = lr / (1.0 - pow_int(beta1, step))
    inv_bias2_sqrt = 1.0 / sqrt_rn(1.0 - pow_int(beta2, step))
    return decay, beta1, 1.0 - beta1, 1.0 - beta2, step_size, inv_bias2_sqrt, eps


@triton.jit
def adam(p, g, state, s):
    """Adam, Kingma and Ba 2015, algorithm 1 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_avg_sq = state
    decay, beta1, weight1, weight2, step_size, inv_bias2_sqrt, eps = s
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * inv_bias2_sqrt + eps
    return decay(p, decay) - step_size * div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)


@triton.jit
def adam_amsgrad(p, g, state, s):
    """AMSGrad, Reddi et al. 2018, algorithm 2 (https://openreview.net/forum?id=ryQu7f-RZ)."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    decay, beta1, weight1, weight2, step_size, inv_bias2_sqrt, eps = s
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    # written this way round, a NaN on either side is kept, as torch.maximum does
    larger = (exp_avg_sq > max_exp_avg_sq) | (exp_avg_sq != exp_avg_sq)
    max_exp_avg_sq = tl.where(larger, exp_avg_sq, max_exp_avg_sq)
    denom = sqrt_rn(max_exp_avg_sq) * inv_bias2_sqrt + eps
    p = decay(p, decay) - step_size * div_rn(exp_avg, denom)
    return p, (exp_avg, exp_avg_sq, max_exp_avg_sq)
