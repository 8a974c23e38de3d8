"""Adan."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


class AdanHparams(NamedTuple):
    """Options of Adan; ``weight_decay`` is the decoupled one."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    beta3: Tensor
    eps: Tensor
    weight_decay: Tensor


class AdanScalars(NamedTuple):
    """Scalars of :func:`adan`."""

    first: Tensor
    decay: Tensor
    lr: Tensor
    beta1: Tensor
    weight1: Tensor
    beta2: Tensor
    weight2: Tensor
    weight3: Tensor
    inv_bias1: Tensor
    diff_share: Tensor
    inv_bias3_sqrt: Tensor
    eps: Tensor


def adan_no_prox_scalars(hparams: AdanHparams, step: Tensor) -> AdanScalars:
    """Scalars of :func:`adan` with the decay of AdamW."""
    lr, beta1, beta2, beta3, eps, weight_decay = hparams
    return AdanScalars(
        torch.where(step == 1, 1.0, 0.0),
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


def adan_scalars(hparams: AdanHparams, step: Tensor) -> AdanScalars:
    """Scalars of :func:`adan`: dividing by ``1 + lr * decay`` is AdamW's decay at a lower rate."""
    lr, beta1, beta2, beta3, eps, weight_decay = hparams
    lr = lr / (1.0 + lr * weight_decay)
    return adan_no_prox_scalars(AdanHparams(lr, beta1, beta2, beta3, eps, weight_decay), step)


def adan(p: Tensor, g: Tensor, state: State, s: AdanScalars) -> tuple[Tensor, State]:
    """Adan, Xie et al. 2022, algorithm 1 (https://arxiv.org/abs/2208.06677)."""
    exp_avg, exp_avg_diff, exp_avg_sq, pre_grad = state
    diff = g - torch.where(s.first != 0, g, pre_grad)
    ahead = g + s.beta2 * diff
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_diff = s.beta2 * exp_avg_diff + s.weight2 * diff
    exp_avg_sq = decay(exp_avg_sq, s.weight3) + (s.weight3 * ahead) * ahead
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias3_sqrt + s.eps
    mixed = s.inv_bias1 * exp_avg + s.diff_share * exp_avg_diff
    p = decay(p, s.decay) - s.lr * (mixed / denom)
    return p, (exp_avg, exp_avg_diff, exp_avg_sq, g)


ADAN = Rule(
    adan,
    adan_scalars,
    AdanHparams,
    AdanScalars,
    ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta3"),),
)
ADAN_NO_PROX = ADAN._replace(scalars=adan_no_prox_scalars)
