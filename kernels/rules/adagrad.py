"""Adagrad: the Triton counterpart of fused_optim/rules/adagrad.py."""

import triton
import triton.language as tl  # noqa: F401  the interpreter needs it in each module

from fused_optim.kernels.rules.common import div_rn, sqrt_rn
from fused_optim.kernels.rules.signatures import AdagradHparams, AdagradScalars


@triton.jit
def adagrad_scalars(hparams, step):
    """Return the scalars of :func:`adagrad`."""
    hparams = AdagradHparams(*hparams)
    return AdagradScalars(
        step_size=hparams.lr / (1.0 + (step - 1.0) * hparams.lr_decay), eps=hparams.eps
    )


@triton.jit
def adagrad(p, g, state, s):
    """Adagrad, Duchi et al. 2011, figure 1, diagonal (https://jmlr.org/papers/v12/duchi11a)."""
    (sum,) = state
    s = AdagradScalars(*s)
    sum = sum + g * g
    return p - s.step_size * div_rn(g, sqrt_rn(sum) + s.eps), (sum,)
