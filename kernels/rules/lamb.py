"""LAMB: the Triton counterpart of fused_optim/rules/lamb.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, pow_int, sqrt_rn
from fused_optim.kernels.rules.signatures import LAMBHparams, LAMBScalars


@triton.jit
def lamb_scalars(hparams, step):
    """Return the scalars of :func:`lamb` that do not depend on the norms."""
    hparams = LAMBHparams(*hparams)
    return LAMBScalars(
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        inv_bias_correction1=1.0 / (1.0 - pow_int(hparams.beta1, step)),
        inv_bias_correction2_sqrt=1.0 / sqrt_rn(1.0 - pow_int(hparams.beta2, step)),
        eps=hparams.eps,
        weight_decay=hparams.weight_decay,
        lr=hparams.lr,
        adapt=hparams.adapt,
        low=hparams.low,
        high=hparams.high,
        # the reduction forms it; before Triton 3.7 a jit function cannot return None
        step_size=hparams.lr,
    )


@triton.jit
def lamb_direction(p, g, state, s):
    """Return the direction of Adam with weight decay added, and both new moments."""
    exp_avg, exp_avg_sq = state
    s = LAMBScalars(*s)
    exp_avg = decay(exp_avg, s.weight1) + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = div_rn(
        s.inv_bias_correction1 * exp_avg, sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    )
    update = tl.where(s.weight_decay != 0, update + s.weight_decay * p, update)
    return update, exp_avg, exp_avg_sq


@triton.jit
def lamb_map(p, g, state, s):
    """Return the squares of the parameter and of the direction."""
    update, _, _ = lamb_direction(p, g, state, s)
    return p * p, update * update


@triton.jit
def lamb_finalize(sums, numel, s):
    """Form the step size of a tensor: lr times the trust ratio, which is 1 where a norm is 0."""
    early = LAMBScalars(*s)
    weight_norm = sqrt_rn(sums[0])
    # NaN propagates, as in torch.minimum and torch.maximum
    weight_norm = tl.where(weight_norm < early.low, early.low, weight_norm)
    weight_norm = tl.where(weight_norm > early.high, early.high, weight_norm)
    update_norm = sqrt_rn(sums[1])
    trusts = (early.adapt != 0) & (weight_norm > 0) & (update_norm > 0)
    trust_ratio = tl.where(trusts, weight_norm / update_norm, 1.0)
    return LAMBScalars(*s, step_size=early.lr * trust_ratio)


@triton.jit
def lamb(p, g, state, s):
    """LAMB, You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962)."""
    update, exp_avg, exp_avg_sq = lamb_direction(p, g, state, s)
    return p - LAMBScalars(*s).step_size * update, (exp_avg, exp_avg_sq)
