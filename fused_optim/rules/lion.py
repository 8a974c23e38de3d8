"""Lion."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, decay


class LionHparams(NamedTuple):
    """Options of Lion; ``weight_decay`` is the decoupled one."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    weight_decay: Tensor


class LionScalars(NamedTuple):
    """Scalars of :func:`lion`."""

    decay: Tensor
    lr: Tensor
    beta1: Tensor
    weight1: Tensor
    weight2: Tensor


def lion_scalars(hparams: LionHparams, step: Tensor) -> LionScalars:
    """Scalars of :func:`lion`."""
    lr, beta1, beta2, weight_decay = hparams
    return LionScalars(lr * weight_decay, lr, beta1, 1.0 - beta1, 1.0 - beta2)


def lion(p: Tensor, g: Tensor, state: State, s: LionScalars) -> tuple[Tensor, State]:
    """Lion, Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675)."""
    (exp_avg,) = state
    mixed = s.beta1 * exp_avg + s.weight1 * g
    # the sign of NaN is NaN: a bad gradient must be seen, and torch.sign would hide it as 0
    sign = torch.where(mixed != mixed, mixed, (mixed > 0).to(p.dtype) - (mixed < 0).to(p.dtype))
    return decay(p, s.decay) - s.lr * sign, (decay(exp_avg, s.weight2) + s.weight2 * g,)


LION = Rule(lion, lion_scalars, LionHparams, LionScalars, ("exp_avg",))
