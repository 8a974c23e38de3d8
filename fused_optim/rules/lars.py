"""LARS."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Reduction, Rule, State, sqrt_rn


class LARSHparams(NamedTuple):
    """Options of LARS."""

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor
    trust_coefficient: Tensor
    eps: Tensor


class LARSScalars(NamedTuple):
    """Scalars of :func:`lars`; the last is formed from the norms."""

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor
    trust_coefficient: Tensor
    eps: Tensor
    rate: Tensor


def lars_scalars(hparams: LARSHparams, step: Tensor) -> tuple[Tensor, ...]:
    """Scalars of :func:`lars` that are known before the norms."""
    lr, momentum, weight_decay, trust_coefficient, eps = hparams
    return lr, momentum, weight_decay, trust_coefficient, eps


def lars_measure(p: Tensor, g: Tensor, state: State, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Squares of parameter and gradient."""
    return p * p, g * g


def lars_finish(
    sums: tuple[Tensor, ...], numel: Tensor, s: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The rate of this tensor: lr times the local rate, 1 where a norm is 0."""
    lr, _, weight_decay, trust_coefficient, eps = s
    weight_norm = sqrt_rn(sums[0])
    grad_norm = sqrt_rn(sums[1])
    local = trust_coefficient * weight_norm / (grad_norm + weight_decay * weight_norm + eps)
    return (lr * torch.where((weight_norm > 0) & (grad_norm > 0), local, 1.0),)


def lars(p: Tensor, g: Tensor, state: State, s: LARSScalars) -> tuple[Tensor, State]:
    """LARS, You et al. 2017, algorithm 1 (https://arxiv.org/abs/1708.03888)."""
    (momentum_buffer,) = state
    g = torch.where(s.weight_decay != 0, g + s.weight_decay * p, g)
    momentum_buffer = s.momentum * momentum_buffer + s.rate * g
    return p - momentum_buffer, (momentum_buffer,)


LARS = Rule(
    lars,
    lars_scalars,
    LARSHparams,
    LARSScalars,
    ("momentum_buffer",),
    reduction=Reduction(lars_measure, lars_finish, num_sums=2, scalars=1),
)
