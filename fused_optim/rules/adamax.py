"""Adamax."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, keep, power


class AdamaxHyper(NamedTuple):
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


def adamax_scalars(hyper: AdamaxHyper, step: Tensor) -> AdamaxScalars:
    """Scalars of :func:`adamax`."""
    lr, beta1, beta2, eps = hyper
    step_size = lr / (1.0 - power(beta1, step))
    return AdamaxScalars(beta1, 1.0 - beta1, 1.0 - beta2, step_size, eps)


def adamax(p: Tensor, g: Tensor, state: State, h: AdamaxScalars) -> tuple[Tensor, State]:
    """Adamax, Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_inf = state
    exp_avg = h.beta1 * exp_avg + h.weight1 * g
    exp_inf = torch.maximum(keep(exp_inf, h.weight2), g.abs() + h.eps)
    return p - h.step_size * (exp_avg / exp_inf), (exp_avg, exp_inf)


ADAMAX = Rule(
    adamax,
    adamax_scalars,
    AdamaxHyper,
    AdamaxScalars,
    ("exp_avg", "exp_inf"),
    counters=("step",),
    unsigned=(("exp_inf", "beta2"),),
)
