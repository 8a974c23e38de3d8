"""LAMB."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Reduction, Rule, State, decay, pow_int, sqrt_rn


class LAMBHparams(NamedTuple):
    """Options of LAMB; ``adapt`` is 0 to leave the trust ratio at 1."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor
    adapt: Tensor
    low: Tensor
    high: Tensor


class LAMBScalars(NamedTuple):
    """Scalars of :func:`lamb`; the last is formed from the norms."""

    weight1: Tensor
    weight2: Tensor
    inv_bias1: Tensor
    inv_bias2_sqrt: Tensor
    eps: Tensor
    weight_decay: Tensor
    lr: Tensor
    adapt: Tensor
    low: Tensor
    high: Tensor
    step_size: Tensor


def lamb_scalars(hparams: LAMBHparams, step: Tensor) -> tuple[Tensor, ...]:
    """Scalars of :func:`lamb` that are known before the norms."""
    lr, beta1, beta2, eps, weight_decay, adapt, low, high = hparams
    inv_bias1 = 1.0 / (1.0 - pow_int(beta1, step))
    inv_bias2_sqrt = 1.0 / sqrt_rn(1.0 - pow_int(beta2, step))
    weights = (1.0 - beta1, 1.0 - beta2)
    return (*weights, inv_bias1, inv_bias2_sqrt, eps, weight_decay, lr, adapt, low, high)


def lamb_direction(
    p: Tensor,
    g: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    inv_bias1: Tensor,
    inv_bias2_sqrt: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of Adam with the decay in it, and the new moments."""
    exp_avg = decay(exp_avg, weight1) + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    update = (inv_bias1 * exp_avg) / (sqrt_rn(exp_avg_sq) * inv_bias2_sqrt + eps)
    update = torch.where(weight_decay != 0, update + weight_decay * p, update)
    return update, exp_avg, exp_avg_sq


def lamb_measure(p: Tensor, g: Tensor, state: State, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Squares of parameter and direction."""
    exp_avg, exp_avg_sq = state
    update, _, _ = lamb_direction(p, g, exp_avg, exp_avg_sq, *s[:6])
    return p * p, update * update


def lamb_finish(
    sums: tuple[Tensor, ...], numel: Tensor, s: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The rate of this tensor: lr times the trust ratio, 1 where a norm is 0."""
    lr, adapt, low, high = s[6:10]
    weight_norm = torch.minimum(torch.maximum(sqrt_rn(sums[0]), low), high)
    update_norm = sqrt_rn(sums[1])
    trusts = (adapt != 0) & (weight_norm > 0) & (update_norm > 0)
    return (lr * torch.where(trusts, weight_norm / update_norm, 1.0),)


def lamb(p: Tensor, g: Tensor, state: State, s: LAMBScalars) -> tuple[Tensor, State]:
    """LAMB, You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962)."""
    exp_avg, exp_avg_sq = state
    update, exp_avg, exp_avg_sq = lamb_direction(p, g, exp_avg, exp_avg_sq, *s[:6])
    return p - s.step_size * update, (exp_avg, exp_avg_sq)


LAMB = Rule(
    lamb,
    lamb_scalars,
    LAMBHparams,
    LAMBScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    reduction=Reduction(lamb_measure, lamb_finish, num_sums=2, scalars=1),
    nonnegative=(("exp_avg_sq", "beta2"),),
)
