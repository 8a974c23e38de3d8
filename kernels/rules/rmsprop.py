"""RMSprop: the same page as fused_optim/rules/rmsprop.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, sqrt_rn


@triton.jit
def rmsprop_scalars(hparams, step):
    """Scalars of :func:`rmsprop` and :func:`rmsprop_centered`."""
    lr, alpha, eps, _momentum = hparams
    return lr, 1.0 - alpha, eps


@triton.jit
def rmsprop_momentum_scalars(hparams, step):
    """Scalars of :func:`rmsprop_momentum` and :func:`rmsprop_centered_momentum`."""
    lr, alpha, eps, momentum = hparams
    return lr, 1.0 - alpha, eps, momentum


@triton.jit
def toward(x, y, weight):
    """``x`` moved towards ``y``, as ``Tensor.lerp``: never past it, and onto it at weight 1."""
    way = y - x
    return tl.where(weight < 0.5, x + weight * way, y - way * (1.0 - weight))


@triton.jit
def variance(square_avg, grad_avg):
    """``square_avg - grad_avg ** 2`` that rounding makes neither negative nor Inf - Inf."""
    square = grad_avg * grad_avg
    difference = tl.where(square == float("inf"), square_avg, square_avg - square)
    return tl.where(difference < 0.0, 0.0, difference)


@triton.jit
def rmsprop(p, g, state, s):
    """RMSprop, Hinton 2012, lecture 6 (https://www.cs.toronto.edu/~tijmen/csc321)."""
    (square_avg,) = state
    lr, weight, eps = s
    square_avg = decay(square_avg, weight) + (weight * g) * g
    return p - lr * div_rn(g, sqrt_rn(square_avg) + eps), (square_avg,)


@triton.jit
def rmsprop_momentum(p, g, state, s):
    """RMSprop whose steps enter a momentum buffer, as torch.optim.RMSprop defines it."""
    square_avg, momentum_buffer = state
    lr, weight, eps, momentum = s
    square_avg = decay(square_avg, weight) + (weight * g) * g
    momentum_buffer = momentum * momentum_buffer + div_rn(g, sqrt_rn(square_avg) + eps)
    return p - lr * momentum_buffer, (square_avg, momentum_buffer)


@triton.jit
def rmsprop_centered(p, g, state, s):
    """Centered RMSprop, Graves 2013, section 4.2 (https://arxiv.org/abs/1308.0850)."""
    square_avg, grad_avg = state
    lr, weight, eps = s
    square_avg = decay(square_avg, weight) + (weight * g) * g
    grad_avg = toward(grad_avg, g, weight)
    denom = sqrt_rn(variance(square_avg, grad_avg)) + eps
    return p - lr * div_rn(g, denom), (square_avg, grad_avg)


@triton.jit
def rmsprop_centered_momentum(p, g, state, s):
    """Centered RMSprop with momentum, Graves 2013, section 4.2 (arXiv 1308.0850)."""
    square_avg, momentum_buffer, grad_avg = state
    lr, weight, eps, momentum = s
    square_avg = decay(square_avg, weight) + (weight * g) * g
    grad_avg = toward(grad_avg, g, weight)
    denom = sqrt_rn(variance(square_avg, grad_avg)) + eps
    momentum_buffer = momentum * momentum_buffer + div_rn(g, denom)
    return p - lr * momentum_buffer, (square_avg, momentum_buffer, grad_avg)
