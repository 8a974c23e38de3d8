"""LARS."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import LARSHparams, LARSScalars
from fused_optim.rules.common import Reduction, Rule, State, sqrt_rn


def lars_scalars(hparams: LARSHparams, step: Tensor) -> LARSScalars:
    """Return the scalars of :func:`lars` that do not depend on the norms."""
    return LARSScalars(
        lr=hparams.lr,
        momentum=hparams.momentum,
        weight_decay=hparams.weight_decay,
        trust_coefficient=hparams.trust_coefficient,
        eps=hparams.eps,
    )


def lars_map(p: Tensor, g: Tensor, state: State, s: LARSScalars) -> tuple[Tensor, ...]:
    """Return the squares of the parameter and of the gradient."""
    return p * p, g * g


def lars_finalize(sums: tuple[Tensor, ...], numel: Tensor, s: LARSScalars) -> LARSScalars:
    """Form the rate of a tensor: lr times the local rate, which is 1 where a norm is 0."""
    weight_norm = sqrt_rn(sums[0])
    grad_norm = sqrt_rn(sums[1])
    denom = grad_norm + s.weight_decay * weight_norm + s.eps
    local_rate = s.trust_coefficient * weight_norm / denom
    local_rate = torch.where((weight_norm > 0) & (grad_norm > 0), local_rate, 1.0)
    return s._replace(rate=s.lr * local_rate)


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
    reduction=Reduction(lars_map, lars_finalize, num_sums=2),
)
