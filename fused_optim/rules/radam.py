"""RAdam."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import AdamHparams, RAdamScalars
from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


def radam_scalars(hparams: AdamHparams, step: Tensor) -> RAdamScalars:
    """Return the scalars of :func:`radam`: whether the variance is known, and its rectification."""
    power2 = pow_int(hparams.beta2, step)
    bias_correction2 = 1.0 - power2
    rho_inf = 2.0 / (1.0 - hparams.beta2) - 1.0
    rho = rho_inf - 2.0 * step * power2 / bias_correction2
    tractable = rho > 5.0
    # 8 replaces rho where the rectification is unused: any number above 4 avoids a division by 0
    length = torch.where(tractable, rho, 8.0)
    longest = torch.where(tractable, rho_inf, 8.0)
    rect = (length - 4.0) * (length - 2.0) * longest
    rect = sqrt_rn(rect / ((longest - 4.0) * (longest - 2.0) * length))
    step_size = hparams.lr / (1.0 - pow_int(hparams.beta1, step))
    step_size = torch.where(tractable, step_size * rect * sqrt_rn(bias_correction2), step_size)
    rectified = torch.where(tractable, 1.0, torch.zeros_like(rho))
    return RAdamScalars(
        decay=hparams.lr * hparams.weight_decay,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        step_size=step_size,
        rectified=rectified,
        eps=hparams.eps,
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
    AdamHparams,
    RAdamScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta2"),),
    decays=True,
)
