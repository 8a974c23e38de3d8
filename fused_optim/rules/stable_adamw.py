"""StableAdamW."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import PerTensor, Rule, State, keep, power, root


class StableAdamWHyper(NamedTuple):
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


def stable_adamw_scalars(hyper: StableAdamWHyper, step: Tensor) -> tuple[Tensor, ...]:
    """Scalars of :func:`stable_adamw` that are known before the mean square."""
    lr, beta1, beta2, eps, weight_decay = hyper
    weight1 = (1.0 - beta1) / (1.0 - power(beta1, step))
    weight2 = (1.0 - beta2) / (1.0 - power(beta2, step))
    return weight1, weight2, eps, eps * eps, lr, weight_decay


def stable_adamw_measure(
    p: Tensor, g: Tensor, state: State, h: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The squared gradient over its average."""
    _, exp_avg_sq = state
    _, weight2, _, eps_sq, _, _ = h
    exp_avg_sq = keep(exp_avg_sq, weight2) + (weight2 * g) * g
    return (g * g / torch.where(exp_avg_sq < eps_sq, eps_sq, exp_avg_sq),)


def stable_adamw_finish(
    sums: tuple[Tensor, ...], numel: Tensor, h: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Decay and step of this tensor: divided by the root of the mean square where that is > 1."""
    _, _, _, _, lr, weight_decay = h
    mean = root(sums[0] / numel)
    rate = lr / torch.where(mean < 1.0, 1.0, mean)
    return rate * weight_decay, rate


def stable_adamw(p: Tensor, g: Tensor, state: State, h: StableAdamWScalars) -> tuple[Tensor, State]:
    """StableAdamW, Wortsman et al. 2023, algorithm 2 (https://arxiv.org/abs/2304.13013)."""
    exp_avg, exp_avg_sq = state
    exp_avg = keep(exp_avg, h.weight1) + h.weight1 * g
    exp_avg_sq = keep(exp_avg_sq, h.weight2) + (h.weight2 * g) * g
    update = exp_avg / (root(exp_avg_sq) + h.eps)
    return keep(p, h.decay) - h.step_size * update, (exp_avg, exp_avg_sq)


STABLE_ADAMW = Rule(
    stable_adamw,
    stable_adamw_scalars,
    StableAdamWHyper,
    StableAdamWScalars,
    ("exp_avg", "exp_avg_sq"),
    counters=("step",),
    per_tensor=PerTensor(stable_adamw_measure, stable_adamw_finish, quantities=1, scalars=2),
    unsigned=(("exp_avg_sq", "beta2"),),
)
