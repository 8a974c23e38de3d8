"""LARS: the same page as fused_optim/rules/lars.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import sqrt_rn


@triton.jit
def lars_scalars(hparams, step):
    """Scalars of :func:`lars` that are known before the norms."""
    lr, momentum, weight_decay, trust_coefficient, eps = hparams
    return lr, momentum, weight_decay, trust_coefficient, eps


@triton.jit
def lars_measure(p, g, state, s):
    """Squares of parameter and gradient."""
    return p * p, g * g


@triton.jit
def lars_finish(sums, numel, s):
    """The rate of this tensor: lr times the local rate, 1 where a norm is 0."""
    lr, _momentum, weight_decay, trust_coefficient, eps = s
    weight_norm = sqrt_rn(sums[0])
    grad_norm = sqrt_rn(sums[1])
    local = trust_coefficient * weight_norm / (grad_norm + weight_decay * weight_norm + eps)
    return (lr * tl.where((weight_norm > 0) & (grad_norm > 0), local, 1.0),)


@triton.jit
def lars(p, g, state, s):
    """LARS, You et al. 2017, algorithm 1 (https://arxiv.org/abs/1708.03888)."""
    (momentum_buffer,) = state
    _lr, momentum, weight_decay, _trust_coefficient, _eps, rate = s
    g = tl.where(weight_decay != 0, g + weight_decay * p, g)
    momentum_buffer = momentum * momentum_buffer + rate * g
    return p - momentum_buffer, (momentum_buffer,)
