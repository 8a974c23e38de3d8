"""Lion: the same page as fused_optim/rules/lion.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay


@triton.jit
def lion_scalars(hparams, step):
    """Scalars of :func:`lion`."""
    lr, beta1, beta2, weight_decay = hparams
    return lr * weight_decay, lr, beta1, 1.0 - beta1, 1.0 - beta2


@triton.jit
def lion(p, g, state, s):
    """Lion, Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675)."""
    (exp_avg,) = state
    decay, lr, beta1, weight1, weight2 = s
    mixed = beta1 * exp_avg + weight1 * g
    # the sign of NaN is NaN: a bad gradient must be seen
    sign = tl.where(mixed != mixed, mixed, (mixed > 0).to(p.dtype) - (mixed < 0).to(p.dtype))
    return decay(p, decay) - lr * sign, (decay(exp_avg, weight2) + weight2 * g,)
