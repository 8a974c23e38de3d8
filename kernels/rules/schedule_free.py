"""Schedule-free AdamW and SGD: the Triton counterpart of fused_optim/rules/schedule_free.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, pow_int, pow_real, sqrt_rn
from fused_optim.kernels.rules.signatures import (
    ScheduleFreeAdamWHparams,
    ScheduleFreeAdamWScalars,
    ScheduleFreeSGDHparams,
    ScheduleFreeSGDScalars,
)


@triton.jit
def warmed_up(lr, step, warmup_steps):
    """Return the learning rate, which grows linearly over the first ``warmup_steps`` steps."""
    return lr * tl.where(step < warmup_steps, step / warmup_steps, 1.0)


@triton.jit
def averaging(rate, step, r, weight_lr_power, running):
    """Return the new sum of weights and maximum rate, and the weight of z in the average."""
    weight_sum, lr_max = running
    lr_max = tl.where(rate > lr_max, rate, lr_max)
    weight = pow_real(step, r) * pow_real(lr_max, weight_lr_power)
    weight_sum = weight_sum + weight
    # if the rate has always been 0, z has not changed
    return (weight_sum, lr_max), tl.where(weight_sum > 0, weight / weight_sum, 0.0)


@triton.jit
def schedule_free_sgd_scalars(hparams, step, running):
    """Return the scalars of :func:`schedule_free_sgd`."""
    hparams = ScheduleFreeSGDHparams(*hparams)
    rate = warmed_up(hparams.lr, step, hparams.warmup_steps)
    running, share = averaging(rate, step, hparams.r, hparams.weight_lr_power, running)
    y_rate = rate * (1.0 - hparams.momentum * (1.0 - share))
    return running, ScheduleFreeSGDScalars(share=share, rate=rate, y_rate=y_rate)


@triton.jit
def schedule_free_adamw_scalars(hparams, step, running):
    """Return the scalars of :func:`schedule_free_adamw` and :func:`schedule_free_adamw_decay`."""
    hparams = ScheduleFreeAdamWHparams(*hparams)
    bias_correction2_sqrt = sqrt_rn(1.0 - pow_int(hparams.beta2, step))
    rate = warmed_up(hparams.lr, step, hparams.warmup_steps) * bias_correction2_sqrt
    running, share = averaging(rate, step, hparams.r, hparams.weight_lr_power, running)
    y_rate = rate * (1.0 - hparams.beta1 * (1.0 - share))
    s = ScheduleFreeAdamWScalars(
        share=share,
        rate=rate,
        y_rate=y_rate,
        weight2=1.0 - hparams.beta2,
        eps=hparams.eps,
        decay=hparams.weight_decay,
    )
    return running, s


@triton.jit
def schedule_free_sgd(p, g, state, s):
    """Schedule-free SGD, Defazio et al. 2024, equations 2-4 (https://arxiv.org/abs/2405.15682)."""
    (z,) = state
    s = ScheduleFreeSGDScalars(*s)
    p = p + (s.share * (z - p) - s.y_rate * g)
    return p, (z - s.rate * g,)


@triton.jit
def schedule_free_adamw(p, g, state, s):
    """Schedule-free AdamW, Defazio et al. 2024, algorithm 1 (https://arxiv.org/abs/2405.15682)."""
    z, exp_avg_sq = state
    s = ScheduleFreeAdamWScalars(*s)
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = div_rn(g, sqrt_rn(exp_avg_sq) + s.eps)
    p = p + (s.share * (z - p) - s.y_rate * update)
    return p, (z - s.rate * update, exp_avg_sq)


@triton.jit
def schedule_free_adamw_decay(p, g, state, s):
    """Schedule-free AdamW with its weight decay, which is taken at y."""
    z, exp_avg_sq = state
    s = ScheduleFreeAdamWScalars(*s)
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = div_rn(g, sqrt_rn(exp_avg_sq) + s.eps) + s.decay * p
    p = p + (s.share * (z - p) - s.y_rate * update)
    return p, (z - s.rate * update, exp_avg_sq)
