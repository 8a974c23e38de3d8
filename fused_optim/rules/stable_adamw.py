"""StableAdamW."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Reduction, Rule, State, decay, pow_int, sqrt_rn


class StableAdamWHparams(NamedTuple):
    """Options of StableAdamW."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor


class StableAdamWScalars(NamedTuple):
    """Scalars of :func:`stable_adamw`; the last two are formed from the mean square."""

    weight1: Tensor
    weight2: Tensor
    eps: Tensor
    eps_sq: Tensor
    lr: Tensor
    weight_decay: Tensor
    decay: Tensor
    step_size: Tensor


def stable_adamw_scalars(hparams: StableAdamWHparams, step: Tensor) -> tuple[Tensor, ...]:
    """Scalars of :func:`stable_adamw` that are known before the mean square."""
    lr, beta1, beta2, eps, weight_decay = hparams
    weight1 = (1.0 - beta1) / (1.0 - pow_int(beta1, step))
    weight2 = (1.0 - beta2) / (1.0 - pow_int(beta2, step))
    return weight1, weight2, eps, eps * eps, lr, weight_decay


def stable_adamw_measure(
    p: Tensor, g: Tensor, state: State, s: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The squared gradient over its average."""
    _, exp_avg_sq = state
    _, weight2, _, eps_sq, _, _ = s
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    return (g * g / torch.where(exp_avg_sq < eps_sq, eps_sq, exp_avg_sq),)


def stable_adamw_finish(
    sums: tuple[Tensor, ...], numel: Tensor, s: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Decay and step of this tensor: divided by the root of the mean square where that is > 1."""
    _, _, _, _, lr, weight_decay = s
    mean = sqrt_rn(sums[0] / numel)
    rate = lr / torch.where(mean < 1.0, 1.0, mean)
    return rate * weight_decay, rate


def stable_adamw(p: Tensor, g: Tensor, state: State, s: StableAdamWScalars) -> tuple[Tensor, State]:
    """StableAdamW, Wortsman et al. 2023, algorithm 2 (https://arxiv.org/abs/2304.13013)."""
    exp_avg, exp_avg_sq = state
    exp_avg = decay(exp_avg, s.weight1) + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = exp_avg / (sqrt_rn(exp_avg_sq) + s.eps)
    return decay(p, s.decay) - s.step_size * update, (exp_avg, exp_avg_sq)


STABLE_ADAMW = Rule(
    stable_adamw,
    stable_adamw_scalars,
    StableAdamWHparams,
    StableAdamWScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    reduction=Reduction(stable_adamw_measure, stable_adamw_finish, num_sums=1, scalars=2),
    nonnegative=(("exp_avg_sq", "beta2"),),
)
