"""Schedule-free AdamW and SGD: the parameter is y, between the iterate z and its average x."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import (
    ScheduleFreeAdamWHparams,
    ScheduleFreeAdamWScalars,
    ScheduleFreeSGDHparams,
    ScheduleFreeSGDScalars,
)
from fused_optim.rules.common import Rule, State, decay, pow_int, pow_real, sqrt_rn

Running = tuple[Tensor, ...]


def warmed_up(lr: Tensor, step: Tensor, warmup_steps: Tensor) -> Tensor:
    """Return the learning rate, which grows linearly over the first ``warmup_steps`` steps."""
    return lr * torch.where(step < warmup_steps, step / warmup_steps, 1.0)


def averaging(
    rate: Tensor, step: Tensor, r: Tensor, weight_lr_power: Tensor, running: Running
) -> tuple[Running, Tensor]:
    """Return the new sum of weights and maximum rate, and the weight of z in the average."""
    weight_sum, lr_max = running
    lr_max = torch.where(rate > lr_max, rate, lr_max)
    weight = pow_real(step, r) * pow_real(lr_max, weight_lr_power)
    weight_sum = weight_sum + weight
    # if the rate has always been 0, z has not changed
    return (weight_sum, lr_max), torch.where(weight_sum > 0, weight / weight_sum, 0.0)


def schedule_free_sgd_scalars(
    hparams: ScheduleFreeSGDHparams, step: Tensor, running: Running
) -> tuple[Running, ScheduleFreeSGDScalars]:
    """Return the scalars of :func:`schedule_free_sgd`."""
    rate = warmed_up(hparams.lr, step, hparams.warmup_steps)
    running, share = averaging(rate, step, hparams.r, hparams.weight_lr_power, running)
    y_rate = rate * (1.0 - hparams.momentum * (1.0 - share))
    return running, ScheduleFreeSGDScalars(share=share, rate=rate, y_rate=y_rate)


def schedule_free_adamw_scalars(
    hparams: ScheduleFreeAdamWHparams, step: Tensor, running: Running
) -> tuple[Running, ScheduleFreeAdamWScalars]:
    """Return the scalars of :func:`schedule_free_adamw` and :func:`schedule_free_adamw_decay`."""
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


def schedule_free_sgd(
    p: Tensor, g: Tensor, state: State, s: ScheduleFreeSGDScalars
) -> tuple[Tensor, State]:
    """Schedule-free SGD, Defazio et al. 2024, equations 2-4 (https://arxiv.org/abs/2405.15682)."""
    (z,) = state
    p = p + (s.share * (z - p) - s.y_rate * g)
    return p, (z - s.rate * g,)


def schedule_free_adamw(
    p: Tensor, g: Tensor, state: State, s: ScheduleFreeAdamWScalars
) -> tuple[Tensor, State]:
    """Schedule-free AdamW, Defazio et al. 2024, algorithm 1 (https://arxiv.org/abs/2405.15682)."""
    z, exp_avg_sq = state
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = g / (sqrt_rn(exp_avg_sq) + s.eps)
    p = p + (s.share * (z - p) - s.y_rate * update)
    return p, (z - s.rate * update, exp_avg_sq)


def schedule_free_adamw_decay(
    p: Tensor, g: Tensor, state: State, s: ScheduleFreeAdamWScalars
) -> tuple[Tensor, State]:
    """Schedule-free AdamW with its weight decay, which is taken at y."""
    z, exp_avg_sq = state
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = g / (sqrt_rn(exp_avg_sq) + s.eps) + s.decay * p
    p = p + (s.share * (z - p) - s.y_rate * update)
    return p, (z - s.rate * update, exp_avg_sq)


NUM_SCALAR_STATE = ("step", "weight_sum", "lr_max")
SCHEDULE_FREE_SGD = Rule(
    schedule_free_sgd,
    schedule_free_sgd_scalars,
    ScheduleFreeSGDHparams,
    ScheduleFreeSGDScalars,
    ("z",),
    NUM_SCALAR_STATE,
    fp32_keys=("z",),
)
SCHEDULE_FREE_ADAMW = Rule(
    schedule_free_adamw,
    schedule_free_adamw_scalars,
    ScheduleFreeAdamWHparams,
    ScheduleFreeAdamWScalars,
    ("z", "exp_avg_sq"),
    NUM_SCALAR_STATE,
    nonnegative=(("exp_avg_sq", "beta2"),),
    fp32_keys=("z",),
)
SCHEDULE_FREE_ADAMW_DECAY = SCHEDULE_FREE_ADAMW._replace(update=schedule_free_adamw_decay)
