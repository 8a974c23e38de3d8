"""Adan."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, keep, power, root


class AdanHyper(NamedTuple):
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


def adan_no_prox_scalars(hyper: AdanHyper, step: Tensor) -> AdanScalars:
    """Scalars of :func:`adan` with the decay of AdamW."""
    lr, beta1, beta2, beta3, eps, weight_decay = hyper
    return AdanScalars(
        torch.where(step == 1, 1.0, 0.0),
        lr * weight_decay,
        lr,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 - beta3,
        1.0 / (1.0 - power(beta1, step)),
        beta2 / (1.0 - power(beta2, step)),
        1.0 / root(1.0 - power(beta3, step)),
        eps,
    )


def adan_scalars(hyper: AdanHyper, step: Tensor) -> AdanScalars:
    """Scalars of :func:`adan`: dividing by ``1 + lr * decay`` is AdamW's decay at a lower rate."""
    lr, beta1, beta2, beta3, eps, weight_decay = hyper
    lr = lr / (1.0 + lr * weight_decay)
    return adan_no_prox_scalars(AdanHyper(lr, beta1, beta2, beta3, eps, weight_decay), step)


def adan(p: Tensor, g: Tensor, state: State, h: AdanScalars) -> tuple[Tensor, State]:
    """Adan, Xie et al. 2022, algorithm 1 (https://arxiv.org/abs/2208.06677)."""
    exp_avg, exp_avg_diff, exp_avg_sq, pre_grad = state
    diff = g - torch.where(h.first != 0, g, pre_grad)
    ahead = g + h.beta2 * diff
    exp_avg = h.beta1 * exp_avg + h.weight1 * g
    exp_avg_diff = h.beta2 * exp_avg_diff + h.weight2 * diff
    exp_avg_sq = keep(exp_avg_sq, h.weight3) + (h.weight3 * ahead) * ahead
    denom = root(exp_avg_sq) * h.inv_bias3_sqrt + h.eps
    mixed = h.inv_bias1 * exp_avg + h.diff_share * exp_avg_diff
    p = keep(p, h.decay) - h.lr * (mixed / denom)
    return p, (exp_avg, exp_avg_diff, exp_avg_sq, g)


ADAN = Rule(
    adan,
    adan_scalars,
    AdanHyper,
    AdanScalars,
    ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"),
    counters=("step",),
    unsigned=(("exp_avg_sq", "beta3"),),
)
ADAN_NO_PROX = ADAN._replace(scalars=adan_no_prox_scalars)
