"""RAdam: the same page as fused_optim/rules/radam.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, sqrt_rn


@triton.jit
def radam_scalars(hparams, step):
    """Scalars of :func:`radam`: whether the variance is known, and its rectification."""
    lr, beta1, beta2, eps, weight_decay = hparams
    power2 = pow_int(beta2, step)
    bias2 = 1.0 - power2
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * power2 / bias2
    tractable = rho > 5.0
    # 8 stands for any number above 4 where the rectification is not asked for
    length = tl.where(tractable, rho, 8.0)
    longest = tl.where(tractable, rho_inf, 8.0)
    rect = (length - 4.0) * (length - 2.0) * longest
    rect = sqrt_rn(rect / ((longest - 4.0) * (longest - 2.0) * length))
    step_size = lr / (1.0 - pow_int(beta1, step))
    step_size = tl.where(tractable, step_size * rect * sqrt_rn(bias2), step_size)
    rectified = tl.where(tractable, 1.0, rho * 0.0)
    return lr * weight_decay, beta1, 1.0 - beta1, 1.0 - beta2, step_size, rectified, eps


@triton.jit
def radam(p, g, state, s):
    """RAdam, Liu et al. 2020, algorithm 2 (https://arxiv.org/abs/1908.03265)."""
    exp_avg, exp_avg_sq = state
    decay, beta1, weight1, weight2, step_size, rectified, eps = s
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    denom = tl.where(rectified != 0, sqrt_rn(exp_avg_sq) + eps, 1.0)
    return decay(p, decay) - step_size * div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)
