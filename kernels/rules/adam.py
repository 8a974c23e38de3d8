"""Adam and AMSGrad: the Triton counterpart of fused_optim/rules/adam.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, pow_int, sqrt_rn
from fused_optim.kernels.rules.signatures import AdamHparams, AdamScalars, SparseAdamHparams


@triton.jit
def adam_scalars(hparams, step):
    """Return the scalars of :func:`adam` and :func:`adam_amsgrad`."""
    hparams = AdamHparams(*hparams)
    decay = hparams.lr * hparams.weight_decay
    step_size = hparams.lr / (1.0 - pow_int(hparams.beta1, step))
    inv_bias_correction2_sqrt = 1.0 / sqrt_rn(1.0 - pow_int(hparams.beta2, step))
    return AdamScalars(
        decay=decay,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        step_size=step_size,
        inv_bias_correction2_sqrt=inv_bias_correction2_sqrt,
        eps=hparams.eps,
    )


@triton.jit
def sparse_adam_scalars(hparams, step):
    """Return the scalars of :func:`adam` for SparseAdam, which does not correct ``eps``."""
    hparams = SparseAdamHparams(*hparams)
    step_size = hparams.lr / (1.0 - pow_int(hparams.beta1, step))
    inv_bias_correction2_sqrt = 1.0 / sqrt_rn(1.0 - pow_int(hparams.beta2, step))
    return AdamScalars(
        decay=hparams.beta1 * 0.0,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        step_size=step_size,
        inv_bias_correction2_sqrt=inv_bias_correction2_sqrt,
        eps=hparams.eps * inv_bias_correction2_sqrt,
    )


@triton.jit
def adam(p, g, state, s):
    """Adam, Kingma and Ba 2015, algorithm 1 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_avg_sq = state
    s = AdamScalars(*s)
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    return decay(p, s.decay) - s.step_size * div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)


@triton.jit
def adam_amsgrad(p, g, state, s):
    """AMSGrad, Reddi et al. 2018, algorithm 2 (https://openreview.net/forum?id=ryQu7f-RZ)."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    s = AdamScalars(*s)
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    # this order of comparison propagates a NaN of either operand, as torch.maximum does
    larger = (exp_avg_sq > max_exp_avg_sq) | (exp_avg_sq != exp_avg_sq)
    max_exp_avg_sq = tl.where(larger, exp_avg_sq, max_exp_avg_sq)
    denom = sqrt_rn(max_exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    p = decay(p, s.decay) - s.step_size * div_rn(exp_avg, denom)
    return p, (exp_avg, exp_avg_sq, max_exp_avg_sq)
