"""Adamax."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, decay, pow_int


class AdamaxHparams(NamedTuple):
    """Options of Adamax."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor


class AdamaxScalars(NamedTuple):
    """Scalars of :func:`adamax`."""

    beta1: Tensor
    weight1: Tensor
    weight2: Tensor
    step_size: Tensor
    eps: Tensor


def adamax_scalars(hparams: AdamaxHparams, step: Tensor) -> AdamaxScalars:
    """Scalars of :func:`adamax`."""
    lr, beta1, beta2, eps = hparams
    step_size = lr / (1.0 - pow_int(beta1, step))
    return AdamaxScalars(beta1, 1.0 - beta1, 1.0 - beta2, step_size, eps)


def adamax(p: Tensor, g: Tensor, state: State, s: AdamaxScalars) -> tuple[Tensor, State]:
    """Adamax, Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_inf = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_inf = torch.maximum(decay(exp_inf, s.weight2), g.abs() + s.eps)
    return p - s.step_size * (exp_avg / exp_inf), (exp_avg, exp_inf)


ADAMAX = Rule(
    adamax,
    adamax_scalars,
    AdamaxHparams,
    AdamaxScalars,
    ("exp_avg", "exp_inf"),
    scalar_state=("step",),
    nonnegative=(("exp_inf", "beta2"),),
)
