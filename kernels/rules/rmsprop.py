"""RMSprop: the Triton counterpart of fused_optim/rules/rmsprop.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, sqrt_rn
from fused_optim.kernels.rules.signatures import (
    RMSpropHparams,
    RMSpropMomentumScalars,
    RMSpropScalars,
)


@triton.jit
def rmsprop_scalars(hparams, step):
    """Return the scalars of :func:`rmsprop` and :func:`rmsprop_centered`."""
    hparams = RMSpropHparams(*hparams)
    return RMSpropScalars(lr=hparams.lr, weight=1.0 - hparams.alpha, eps=hparams.eps)


@triton.jit
def rmsprop_momentum_scalars(hparams, step):
    """Return the scalars of :func:`rmsprop_momentum` and :func:`rmsprop_centered_momentum`."""
    hparams = RMSpropHparams(*hparams)
    return RMSpropMomentumScalars(
        lr=hparams.lr, weight=1.0 - hparams.alpha, eps=hparams.eps, momentum=hparams.momentum
    )


@triton.jit
def toward(x, y, weight):
    """Interpolate from ``x`` to ``y`` as ``Tensor.lerp``: never past ``y``; ``y`` at weight 1."""
    change = y - x
    return tl.where(weight < 0.5, x + weight * change, y - change * (1.0 - weight))


@triton.jit
def variance(square_avg, grad_avg):
    """Return ``square_avg - grad_avg ** 2``, never negative by rounding and never Inf - Inf."""
    square = grad_avg * grad_avg
    difference = tl.where(square == float("inf"), square_avg, square_avg - square)
    return tl.where(difference < 0.0, 0.0, difference)


@triton.jit
def rmsprop(p, g, state, s):
    """RMSprop, Hinton 2012, lecture 6 (https://www.cs.toronto.edu/~tijmen/csc321)."""
    (square_avg,) = state
    s = RMSpropScalars(*s)
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    return p - s.lr * div_rn(g, sqrt_rn(square_avg) + s.eps), (square_avg,)


@triton.jit
def rmsprop_momentum(p, g, state, s):
    """RMSprop whose steps enter a momentum buffer, as torch.optim.RMSprop defines it."""
    square_avg, momentum_buffer = state
    s = RMSpropMomentumScalars(*s)
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    momentum_buffer = s.momentum * momentum_buffer + div_rn(g, sqrt_rn(square_avg) + s.eps)
    return p - s.lr * momentum_buffer, (square_avg, momentum_buffer)


@triton.jit
def rmsprop_centered(p, g, state, s):
    """Centered RMSprop, Graves 2013, section 4.2 (https://arxiv.org/abs/1308.0850)."""
    square_avg, grad_avg = state
    s = RMSpropScalars(*s)
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    grad_avg = toward(grad_avg, g, s.weight)
    denom = sqrt_rn(variance(square_avg, grad_avg)) + s.eps
    return p - s.lr * div_rn(g, denom), (square_avg, grad_avg)


@triton.jit
def rmsprop_centered_momentum(p, g, state, s):
    """Centered RMSprop with momentum, Graves 2013, section 4.2 (arXiv 1308.0850)."""
    square_avg, momentum_buffer, grad_avg = state
    s = RMSpropMomentumScalars(*s)
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    grad_avg = toward(grad_avg, g, s.weight)
    denom = sqrt_rn(variance(square_avg, grad_avg)) + s.eps
    momentum_buffer = s.momentum * momentum_buffer + div_rn(g, denom)
    return p - s.lr * momentum_buffer, (square_avg, momentum_buffer, grad_avg)
