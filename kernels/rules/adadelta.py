"""Adadelta: the Triton counterpart of fused_optim/rules/adadelta.py."""

import triton
import triton.language as tl  # noqa: F401  the interpreter needs it in each module

from fused_optim.kernels.rules.common import decay, div_rn, sqrt_rn
from fused_optim.kernels.rules.signatures import AdadeltaHparams, AdadeltaScalars


@triton.jit
def adadelta_scalars(hparams, step):
    """Return the scalars of :func:`adadelta`."""
    hparams = AdadeltaHparams(*hparams)
    return AdadeltaScalars(lr=hparams.lr, weight=1.0 - hparams.rho, eps=hparams.eps)


@triton.jit
def adadelta(p, g, state, s):
    """Adadelta, Zeiler 2012, algorithm 1 (https://arxiv.org/abs/1212.5701)."""
    square_avg, acc_delta = state
    s = AdadeltaScalars(*s)
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    delta = div_rn(sqrt_rn(acc_delta + s.eps), sqrt_rn(square_avg + s.eps)) * g
    acc_delta = decay(acc_delta, s.weight) + (s.weight * delta) * delta
    return p - s.lr * delta, (square_avg, acc_delta)
