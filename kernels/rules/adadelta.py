"""Adadelta: the same page as fused_optim/rules/adadelta.py."""

import triton
import triton.language as tl  # noqa: F401  the interpreter looks for it on each page

from fused_optim.kernels.rules.common import div_rn, decay, sqrt_rn


@triton.jit
def adadelta_scalars(hparams, step):
    """Scalars of :func:`adadelta`."""
    lr, rho, eps = hparams
    return lr, 1.0 - rho, eps


@triton.jit
def adadelta(p, g, state, s):
    """Adadelta, Zeiler 2012, algorithm 1 (https://arxiv.org/abs/1212.5701)."""
    square_avg, acc_delta = state
    lr, weight, eps = s
    square_avg = decay(square_avg, weight) + (weight * g) * g
    delta = div_rn(sqrt_rn(acc_delta + eps), sqrt_rn(square_avg + eps)) * g
    acc_delta = decay(acc_delta, weight) + (weight * delta) * delta
    return p - lr * delta, (square_avg, acc_delta)
