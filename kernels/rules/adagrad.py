"""Adagrad: the same page as fused_optim/rules/adagrad.py."""

import triton
import triton.language as tl  # noqa: F401  the interpreter looks for it on each page

from fused_optim.kernels.rules.common import div_rn, sqrt_rn


@triton.jit
def adagrad_scalars(hparams, step):
    """Scalars of :func:`adagrad`."""
    lr, lr_decay, eps = hparams
    return lr / (1.0 + (step - 1.0) * lr_decay), eps


@triton.jit
def adagrad(p, g, state, s):
    """Adagrad, Duchi et al. 2011, figure 1, diagonal (https://jmlr.org/papers/v12/duchi11a)."""
    (sum,) = state
    step_size, eps = s
    sum = sum + g * g
    return p - step_size * div_rn(g, sqrt_rn(sum) + eps), (sum,)
