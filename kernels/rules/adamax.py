"""Adamax: the Triton counterpart of fused_optim/rules/adamax.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, pow_int
from fused_optim.kernels.rules.signatures import AdamaxHparams, AdamaxScalars


@triton.jit
def adamax_scalars(hparams, step):
    """Return the scalars of :func:`adamax`."""
    hparams = AdamaxHparams(*hparams)
    step_size = hparams.lr / (1.0 - pow_int(hparams.beta1, step))
    return AdamaxScalars(
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        step_size=step_size,
        eps=hparams.eps,
    )


@triton.jit
def adamax(p, g, state, s):
    """Adamax, Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_inf = state
    s = AdamaxScalars(*s)
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_inf = decay(exp_inf, s.weight2)
    size = tl.abs(g) + s.eps
    # this order of comparison propagates a NaN of either operand, as torch.maximum does
    exp_inf = tl.where((size > exp_inf) | (size != size), size, exp_inf)
    return p - s.step_size * div_rn(exp_avg, exp_inf), (exp_avg, exp_inf)
