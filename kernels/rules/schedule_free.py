"""Schedule-free AdamW and SGD: the same page as fused_optim/rules/schedule_free.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, pow_real, sqrt_rn


@triton.jit
def warmed_up(lr, step, warmup_steps):
    """The rate, growing linearly over the first steps."""
    return lr * tl.where(step < warmup_steps, step / warmup_steps, 1.0)


@triton.jit
def averaging(rate, step, r, weight_lr_power, running):
    """The share of the new z in the average, and the sum of weights it comes from."""
    weight_sum, lr_max = running
    lr_max = tl.where(rate > lr_max, rate, lr_max)
    weight = pow_real(step, r) * pow_real(lr_max, weight_lr_power)
    weight_sum = weight_sum + weight
    # a rate that has always been 0 has moved nothing
    return (weight_sum, lr_max), tl.where(weight_sum > 0, weight / weight_sum, 0.0)


@triton.jit
def schedule_free_sgd_scalars(hparams, step, running):
    """Scalars of :func:`schedule_free_sgd`."""
    lr, momentum, warmup_steps, r, weight_lr_power = hparams
    rate = warmed_up(lr, step, warmup_steps)
    running, share = averaging(rate, step, r, weight_lr_power, running)
    y_rate = rate * (1.0 - momentum * (1.0 - share))
    return running, (share, rate, y_rate)


@triton.jit
def schedule_free_adamw_scalars(hparams, step, running):
    """Scalars of :func:`schedule_free_adamw` and :func:`schedule_free_adamw_decay`."""
    lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power = hparams
    rate = warmed_up(lr, step, warmup_steps) * sqrt_rn(1.0 - pow_int(beta2, step))
    running, share = averaging(rate, step, r, weight_lr_power, running)
    y_rate = rate * (1.0 - beta1 * (1.0 - share))
    return running, (share, rate, y_rate, 1.0 - beta2, eps, weight_decay)


@triton.jit
def schedule_free_sgd(p, g, state, s):
    """Schedule-free SGD, Defazio et al. 2024, equations 2-4 (https://arxiv.org/abs/2405.15682)."""
    (z,) = state
    share, rate, y_rate = s
    p = p + (share * (z - p) - y_rate * g)
    return p, (z - rate * g,)


@triton.jit
def schedule_free_adamw(p, g, state, s):
    """Schedule-free AdamW, Defazio et al. 2024, algorithm 1 (https://arxiv.org/abs/2405.15682)."""
    z, exp_avg_sq = state
    share, rate, y_rate, weight2, eps, _decay = s
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    length = div_rn(g, sqrt_rn(exp_avg_sq) + eps)
    p = p + (share * (z - p) - y_rate * length)
    return p, (z - rate * length, exp_avg_sq)


@triton.jit
def schedule_free_adamw_decay(p, g, state, s):
    """Schedule-free AdamW with its weight decay, which is taken at y."""
    z, exp_avg_sq = state
    share, rate, y_rate, weight2, eps, decay = s
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    length = div_rn(g, sqrt_rn(exp_avg_sq) + eps) + decay * p
    p = p + (share * (z - p) - y_rate * length)
    return p, (z - rate * length, exp_avg_sq)
