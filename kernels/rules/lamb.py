"""LAMB: the same page as fused_optim/rules/lamb.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, sqrt_rn


@triton.jit
def lamb_scalars(hparams, step):
    """Scalars of :func:`lamb` that are known before the norms."""
    lr, beta1, beta2, eps, weight_decay, adapt, low, high = hparams
    inv_bias1 = 1.0 / (1.0 - pow_int(beta1, step))
    inv_bias2_sqrt = 1.0 / sqrt_rn(1.0 - pow_int(beta2, step))
    weights = (1.0 - beta1, 1.0 - beta2)
    return weights + (inv_bias1, inv_bias2_sqrt, eps, weight_decay, lr, adapt, low, high)


@triton.jit
def lamb_direction(
    p, g, exp_avg, exp_avg_sq, weight1, weight2, inv_bias1, inv_bias2_sqrt, eps, weight_decay
):
    """The direction of Adam with the decay in it, and the new moments."""
    exp_avg = decay(exp_avg, weight1) + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    update = div_rn(inv_bias1 * exp_avg, sqrt_rn(exp_avg_sq) * inv_bias2_sqrt + eps)
    update = tl.where(weight_decay != 0, update + weight_decay * p, update)
    return update, exp_avg, exp_avg_sq


@triton.jit
def lamb_measure(p, g, state, s):
    """Squares of parameter and direction."""
    exp_avg, exp_avg_sq = state
    weight1, weight2, inv_bias1, inv_bias2_sqrt, eps, weight_decay, _lr, _adapt, _low, _high = s
    update, _, _ = lamb_direction(
        p, g, exp_avg, exp_avg_sq, weight1, weight2, inv_bias1, inv_bias2_sqrt, eps, weight_decay
    )
    return p * p, update * update


@triton.jit
def lamb_finish(sums, numel, s):
    """The rate of this tensor: lr times the trust ratio, 1 where a norm is 0."""
    _weight1, _weight2, _bias1, _bias2, _eps, _weight_decay, lr, adapt, low, high = s
    weight_norm = sqrt_rn(sums[0])
    # NaN is kept, as torch.minimum and torch.maximum do
    weight_norm = tl.where(weight_norm < low, low, weight_norm)
    weight_norm = tl.where(weight_norm > high, high, weight_norm)
    update_norm = sqrt_rn(sums[1])
    trusts = (adapt != 0) & (weight_norm > 0) & (update_norm > 0)
    return (lr * tl.where(trusts, weight_norm / update_norm, 1.0),)


@triton.jit
def lamb(p, g, state, s):
    """LAMB, You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962)."""
    exp_avg, exp_avg_sq = state
    (
        weight1,
        weight2,
        inv_bias1,
        inv_bias2_sqrt,
        eps,
        weight_decay,
        _lr,
        _adapt,
        _low,
        _high,
        step_size,
    ) = s
    update, exp_avg, exp_avg_sq = lamb_direction(
        p, g, exp_avg, exp_avg_sq, weight1, weight2, inv_bias1, inv_bias2_sqrt, eps, weight_decay
    )
    return p - step_size * update, (exp_avg, exp_avg_sq)
