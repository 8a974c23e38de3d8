"""RMSprop: plain and centered, with and without momentum."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import (
    RMSpropHparams,
    RMSpropMomentumScalars,
    RMSpropScalars,
)
from fused_optim.rules.common import Rule, State, decay, sqrt_rn


def rmsprop_scalars(hparams: RMSpropHparams, step: Tensor) -> RMSpropScalars:
    """Return the scalars of :func:`rmsprop` and :func:`rmsprop_centered`."""
    return RMSpropScalars(lr=hparams.lr, weight=1.0 - hparams.alpha, eps=hparams.eps)


def rmsprop_momentum_scalars(hparams: RMSpropHparams, step: Tensor) -> RMSpropMomentumScalars:
    """Return the scalars of :func:`rmsprop_momentum` and :func:`rmsprop_centered_momentum`."""
    return RMSpropMomentumScalars(
        lr=hparams.lr, weight=1.0 - hparams.alpha, eps=hparams.eps, momentum=hparams.momentum
    )


def toward(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Interpolate from ``x`` to ``y`` as ``Tensor.lerp``: never past ``y``; ``y`` at weight 1."""
    change = y - x
    return torch.where(weight < 0.5, x + weight * change, y - change * (1.0 - weight))


def variance(square_avg: Tensor, grad_avg: Tensor) -> Tensor:
    """Return ``square_avg - grad_avg ** 2``, never negative by rounding and never Inf - Inf."""
    square = grad_avg * grad_avg
    difference = torch.where(square == torch.inf, square_avg, square_avg - square)
    return torch.where(difference < 0.0, 0.0, difference)


def rmsprop(p: Tensor, g: Tensor, state: State, s: RMSpropScalars) -> tuple[Tensor, State]:
    """RMSprop, Hinton 2012, lecture 6 (https://www.cs.toronto.edu/~tijmen/csc321)."""
    (square_avg,) = state
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    return p - s.lr * (g / (sqrt_rn(square_avg) + s.eps)), (square_avg,)


def rmsprop_momentum(
    p: Tensor, g: Tensor, state: State, s: RMSpropMomentumScalars
) -> tuple[Tensor, State]:
    """RMSprop whose steps enter a momentum buffer, as torch.optim.RMSprop defines it."""
    square_avg, momentum_buffer = state
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    momentum_buffer = s.momentum * momentum_buffer + g / (sqrt_rn(square_avg) + s.eps)
    return p - s.lr * momentum_buffer, (square_avg, momentum_buffer)


def rmsprop_centered(p: Tensor, g: Tensor, state: State, s: RMSpropScalars) -> tuple[Tensor, State]:
    """Centered RMSprop, Graves 2013, section 4.2 (https://arxiv.org/abs/1308.0850)."""
    square_avg, grad_avg = state
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    grad_avg = toward(grad_avg, g, s.weight)
    denom = sqrt_rn(variance(square_avg, grad_avg)) + s.eps
    return p - s.lr * (g / denom), (square_avg, grad_avg)


def rmsprop_centered_momentum(
    p: Tensor, g: Tensor, state: State, s: RMSpropMomentumScalars
) -> tuple[Tensor, State]:
    """Centered RMSprop with momentum, Graves 2013, section 4.2 (arXiv 1308.0850)."""
    square_avg, momentum_buffer, grad_avg = state
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    grad_avg = toward(grad_avg, g, s.weight)
    denom = sqrt_rn(variance(square_avg, grad_avg)) + s.eps
    momentum_buffer = s.momentum * momentum_buffer + g / denom
    return p - s.lr * momentum_buffer, (square_avg, momentum_buffer, grad_avg)


RMSPROP = Rule(
    rmsprop,
    rmsprop_scalars,
    RMSpropHparams,
    RMSpropScalars,
    ("square_avg",),
    scalar_state=("step",),
    nonnegative=(("square_avg", "alpha"),),
)
CENTERED = ("square_avg", "grad_avg")  # the variance is a difference of the two
RMSPROP_CENTERED = RMSPROP._replace(
    update=rmsprop_centered, state_keys=CENTERED, fp32_keys=CENTERED
)
RMSPROP_MOMENTUM = RMSPROP._replace(
    update=rmsprop_momentum,
    form_scalars=rmsprop_momentum_scalars,
    scalars=RMSpropMomentumScalars,
    state_keys=("square_avg", "momentum_buffer"),
)
RMSPROP_CENTERED_MOMENTUM = RMSPROP_MOMENTUM._replace(
    update=rmsprop_centered_momentum,
    state_keys=("square_avg", "momentum_buffer", "grad_avg"),
    fp32_keys=CENTERED,
)
