"""StableAdamW: the same page as fused_optim/rules/stable_adamw.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, sqrt_rn


@triton.jit
def stable_adamw_scalars(hparams, step):
    """Scalars of :func:`stable_adamw` that are known before the mean square."""
    lr, beta1, beta2, eps, weight_decay = hparams
    weight1 = (1.0 - beta1) / (1.0 - pow_int(beta1, step))
    weight2 = (1.0 - beta2) / (1.0 - pow_int(beta2, step))
    return weight1, weight2, eps, eps * eps, lr, weight_decay


@triton.jit
def stable_adamw_measure(p, g, state, s):
    """The squared gradient over its average."""
    _exp_avg, exp_avg_sq = state
    _weight1, weight2, _eps, eps_sq, _lr, _weight_decay = s
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    return (div_rn(g * g, tl.where(exp_avg_sq < eps_sq, eps_sq, exp_avg_sq)),)


@triton.jit
def stable_adamw_finish(sums, numel, s):
    """Decay and step of this tensor: divided by the root of the mean square where that is > 1."""
    _weight1, _weight2, _eps, _eps_sq, lr, weight_decay = s
    mean = sqrt_rn(sums[0] / numel)
    rate = lr / tl.where(mean < 1.0, 1.0, mean)
    return rate * weight_decay, rate


@triton.jit
def stable_adamw(p, g, state, s):
    """StableAdamW, Wortsman et al. 2023, algorithm 2 (https://arxiv.org/abs/2304.13013)."""
    exp_avg, exp_avg_sq = state
    weight1, weight2, eps, _eps_sq, _lr, _weight_decay, decay, step_size = s
    exp_avg = decay(exp_avg, weight1) + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    update = div_rn(exp_avg, sqrt_rn(exp_avg_sq) + eps)
    return decay(p, decay) - step_size * update, (exp_avg, exp_avg_sq)
