"""Lion: the Triton counterpart of fused_optim/rules/lion.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay
from fused_optim.kernels.rules.signatures import LionHparams, LionScalars


@triton.jit
def lion_scalars(hparams, step):
    """Return the scalars of :func:`lion`."""
    hparams = LionHparams(*hparams)
    return LionScalars(
        decay=hparams.lr * hparams.weight_decay,
        lr=hparams.lr,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
    )


@triton.jit
def lion(p, g, state, s):
    """Lion, Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675)."""
    (exp_avg,) = state
    s = LionScalars(*s)
    mixed = s.beta1 * exp_avg + s.weight1 * g
    # the sign of NaN is NaN: a bad gradient must be seen
    sign = tl.where(mixed != mixed, mixed, (mixed > 0).to(p.dtype) - (mixed < 0).to(p.dtype))
    return decay(p, s.decay) - s.lr * sign, (decay(exp_avg, s.weight2) + s.weight2 * g,)
