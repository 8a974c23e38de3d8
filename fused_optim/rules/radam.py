"""RAdam."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


class RAdamHparams(NamedTuple):
    """Options of RAdam; ``weight_decay`` is the decoupled one."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor


class RAdamScalars(NamedTuple):
    """Scalars of :func:`radam`; ``rectified`` is 1 or 0."""

    decay: Tensor
    beta1: Tensor
    weight1: Tensor
    weight2: Tensor
    step_size: Tensor
    rectified: Tensor
    eps: Tensor


def radam_scalars(hparams: RAdamHparams, step: Tensor) -> RAdamScalars:
    """Scalars of :func:`radam`: whether the variance is known, and its rectification."""
    lr, beta1, beta2, eps, weight_decay = hparams
    power2 = pow_int(beta2, step)
    bias2 = 1.0 - power2
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * power2 / bias2
    tractable = rho > 5.0
    # 8 stands for any number above 4 where the rectification is not asked for
    length = torch.where(tractable, rho, 8.0)
    longest = torch.where(tractable, rho_inf, 8.0)
    rect = (length - 4.0) * (length - 2.0) * longest
    rect = sqrt_rn(rect / ((longest - 4.0) * (longest - 2.0) * length))
    step_size = lr / (1.0 - pow_int(beta1, step))
    step_size = torch.where(tractable, step_size * rect * sqrt_rn(bias2), step_size)
    rectified = torch.where(tractable, 1.0, torch.zeros_like(rho))
    return RAdamScalars(
        lr * weight_decay, beta1, 1.0 - beta1, 1.0 - beta2, step_size, rectified, eps
    )


def radam(p: Tensor, g: Tensor, state: State, s: RAdamScalars) -> tuple[Tensor, State]:
    """RAdam, Liu et al. 2020, algorithm 2 (https://arxiv.org/abs/1908.03265)."""
    exp_avg, exp_avg_sq = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = torch.where(s.rectified != 0, sqrt_rn(exp_avg_sq) + s.eps, 1.0)
    return decay(p, s.decay) - s.step_size * (exp_avg / denom), (exp_avg, exp_avg_sq)


RADAM = Rule(
    radam,
    radam_scalars,
    RAdamHparams,
    RAdamScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta2"),),
)
