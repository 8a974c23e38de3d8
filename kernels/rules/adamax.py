"""Adamax: the same page as fused_optim/rules/adamax.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int


@triton.jit
def adamax_scalars(hparams, step):
    """Scalars of :func:`adamax`."""
    lr, beta1, beta2, eps = hparams
    step_size = lr / (1.0 - pow_int(beta1, step))
    return beta1, 1.0 - beta1, 1.0 - beta2, step_size, eps


@triton.jit
def adamax(p, g, state, s):
    """Adamax, Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_inf = state
    beta1, weight1, weight2, step_size, eps = s
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_inf = decay(exp_inf, weight2)
    size = tl.abs(g) + eps
    # written this way round, a NaN on either side is kept, as torch.maximum does
    exp_inf = tl.where((size > exp_inf) | (size != size), size, exp_inf)
    return p - step_size * div_rn(exp_avg, exp_inf), (exp_avg, exp_inf)
