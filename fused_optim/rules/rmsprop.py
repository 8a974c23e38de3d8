"""RMSprop: plain and centered, with and without momentum."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, keep, root


class RMSpropHyper(NamedTuple):
    """Options of RMSprop."""

    lr: Tensor
    alpha: Tensor
    eps: Tensor
    momentum: Tensor


class RMSpropScalars(NamedTuple):
    """Scalars of :func:`rmsprop` and :func:`rmsprop_centered`."""

    lr: Tensor
    weight: Tensor
    eps: Tensor


class RMSpropMomentumScalars(NamedTuple):
    """Scalars of :func:`rmsprop_momentum` and :func:`rmsprop_centered_momentum`."""

    lr: Tensor
    weight: Tensor
    eps: Tensor
    momentum: Tensor


def rmsprop_scalars(hyper: RMSpropHyper, step: Tensor) -> RMSpropScalars:
    """Scalars of :func:`rmsprop` and :func:`rmsprop_centered`."""
    return RMSpropScalars(hyper.lr, 1.0 - hyper.alpha, hyper.eps)


def rmsprop_momentum_scalars(hyper: RMSpropHyper, step: Tensor) -> RMSpropMomentumScalars:
    """Scalars of :func:`rmsprop_momentum` and :func:`rmsprop_centered_momentum`."""
    return RMSpropMomentumScalars(hyper.lr, 1.0 - hyper.alpha, hyper.eps, hyper.momentum)


def toward(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """``x`` moved towards ``y``, as ``Tensor.lerp``: never past it, and onto it at weight 1."""
    way = y - x
    return torch.where(weight < 0.5, x + weight * way, y - way * (1.0 - weight))


def variance(square_avg: Tensor, grad_avg: Tensor) -> Tensor:
    """``square_avg - grad_avg ** 2`` that rounding makes neither negative nor Inf - Inf."""
    square = grad_avg * grad_avg
    difference = torch.where(square == torch.inf, square_avg, square_avg - square)
    return torch.where(difference < 0.0, 0.0, difference)


def rmsprop(p: Tensor, g: Tensor, state: State, h: RMSpropScalars) -> tuple[Tensor, State]:
    """RMSprop, Hinton 2012, lecture 6 (https://www.cs.toronto.edu/~tijmen/csc321)."""
    (square_avg,) = state
    square_avg = keep(square_avg, h.weight) + (h.weight * g) * g
    return p - h.lr * (g / (root(square_avg) + h.eps)), (square_avg,)


def rmsprop_momentum(
    p: Tensor, g: Tensor, state: State, h: RMSpropMomentumScalars
) -> tuple[Tensor, State]:
    """RMSprop whose steps enter a momentum buffer, as torch.optim.RMSprop defines it."""
    square_avg, momentum_buffer = state
    square_avg = keep(square_avg, h.weight) + (h.weight * g) * g
    momentum_buffer = h.momentum * momentum_buffer + g / (root(square_avg) + h.eps)
    return p - h.lr * momentum_buffer, (square_avg, momentum_buffer)


def rmsprop_centered(p: Tensor, g: Tensor, state: State, h: RMSpropScalars) -> tuple[Tensor, State]:
    """Centered RMSprop, Graves 2013, section 4.2 (https://arxiv.org/abs/1308.0850)."""
    square_avg, grad_avg = state
    square_avg = keep(square_avg, h.weight) + (h.weight * g) * g
    grad_avg = toward(grad_avg, g, h.weight)
    denom = root(variance(square_avg, grad_avg)) + h.eps
    return p - h.lr * (g / denom), (square_avg, grad_avg)


def rmsprop_centered_momentum(
    p: Tensor, g: Tensor, state: State, h: RMSpropMomentumScalars
) -> tuple[Tensor, State]:
    """Centered RMSprop with momentum, Graves 2013, section 4.2 (arXiv 1308.0850)."""
    square_avg, momentum_buffer, grad_avg = state
    square_avg = keep(square_avg, h.weight) + (h.weight * g) * g
    grad_avg = toward(grad_avg, g, h.weight)
    denom = root(variance(square_avg, grad_avg)) + h.eps
    momentum_buffer = h.momentum * momentum_buffer + g / denom
    return p - h.lr * momentum_buffer, (square_avg, momentum_buffer, grad_avg)


RMSPROP = Rule(
    rmsprop,
    rmsprop_scalars,
    RMSpropHyper,
    RMSpropScalars,
    ("square_avg",),
    counters=("step",),
    unsigned=(("square_avg", "alpha"),),
)
CENTERED = ("square_avg", "grad_avg")  # the variance is a difference of the two
RMSPROP_CENTERED = RMSPROP._replace(update=rmsprop_centered, slots=CENTERED, exact=CENTERED)
RMSPROP_MOMENTUM = RMSPROP._replace(
    update=rmsprop_momentum,
    scalars=rmsprop_momentum_scalars,
    h=RMSpropMomentumScalars,
    slots=("square_avg", "momentum_buffer"),
)
RMSPROP_CENTERED_MOMENTUM = RMSPROP_MOMENTUM._replace(
    update=rmsprop_centered_momentum,
    slots=("square_avg", "momentum_buffer", "grad_avg"),
    exact=CENTERED,
)
