"""LARS: the Triton counterpart of fused_optim/rules/lars.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import sqrt_rn
from fused_optim.kernels.rules.signatures import LARSHparams, LARSScalars


@triton.jit
def lars_scalars(hparams, step):
    """Return the scalars of :func:`lars` that do not depend on the norms."""
    hparams = LARSHparams(*hparams)
    return LARSScalars(
        lr=hparams.lr,
        momentum=hparams.momentum,
        weight_decay=hparams.weight_decay,
        trust_coefficient=hparams.trust_coefficient,
        eps=hparams.eps,
        # the reduction forms it; before Triton 3.7 a jit function cannot return None
        rate=hparams.lr,
    )


@triton.jit
def lars_map(p, g, state, s):
    """Return the squares of the parameter and of the gradient."""
    return p * p, g * g


@triton.jit
def lars_finalize(sums, numel, s):
    """Form the rate of a tensor: lr times the local rate, which is 1 where a norm is 0."""
    early = LARSScalars(*s)
    weight_norm = sqrt_rn(sums[0])
    grad_norm = sqrt_rn(sums[1])
    denom = grad_norm + early.weight_decay * weight_norm + early.eps
    local_rate = early.trust_coefficient * weight_norm / denom
    local_rate = tl.where((weight_norm > 0) & (grad_norm > 0), local_rate, 1.0)
    return LARSScalars(*s, rate=early.lr * local_rate)


@triton.jit
def lars(p, g, state, s):
    """LARS, You et al. 2017, algorithm 1 (https://arxiv.org/abs/1708.03888)."""
    (momentum_buffer,) = state
    s = LARSScalars(*s)
    g = tl.where(s.weight_decay != 0, g + s.weight_decay * p, g)
    momentum_buffer = s.momentum * momentum_buffer + s.rate * g
    return p - momentum_buffer, (momentum_buffer,)
