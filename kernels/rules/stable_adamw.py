"""StableAdamW: the Triton counterpart of fused_optim/rules/stable_adamw.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, div_rn, pow_int, sqrt_rn
from fused_optim.kernels.rules.signatures import AdamHparams, StableAdamWScalars


@triton.jit
def stable_adamw_scalars(hparams, step):
    """Return the scalars of :func:`stable_adamw` that do not depend on the mean square."""
    hparams = AdamHparams(*hparams)
    return StableAdamWScalars(
        weight1=(1.0 - hparams.beta1) / (1.0 - pow_int(hparams.beta1, step)),
        weight2=(1.0 - hparams.beta2) / (1.0 - pow_int(hparams.beta2, step)),
        eps=hparams.eps,
        eps_sq=hparams.eps * hparams.eps,
        lr=hparams.lr,
        weight_decay=hparams.weight_decay,
        # the reduction forms both; before Triton 3.7 a jit function cannot return None
        decay=hparams.weight_decay,
        step_size=hparams.lr,
    )


@triton.jit
def stable_adamw_map(p, g, state, s):
    """Return the squared gradient over its second moment estimate."""
    _exp_avg, exp_avg_sq = state
    s = StableAdamWScalars(*s)
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    return (div_rn(g * g, tl.where(exp_avg_sq < s.eps_sq, s.eps_sq, exp_avg_sq)),)


@triton.jit
def stable_adamw_finalize(sums, numel, s):
    """Form decay and step size of a tensor: divided by its root mean square where that is > 1."""
    early = StableAdamWScalars(*s)
    rms = sqrt_rn(sums[0] / numel)
    rate = early.lr / tl.where(rms < 1.0, 1.0, rms)
    return StableAdamWScalars(*s, decay=rate * early.weight_decay, step_size=rate)


@triton.jit
def stable_adamw(p, g, state, s):
    """StableAdamW, Wortsman et al. 2023, algorithm 2 (https://arxiv.org/abs/2304.13013)."""
    exp_avg, exp_avg_sq = state
    s = StableAdamWScalars(*s)
    exp_avg = decay(exp_avg, s.weight1) + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = div_rn(exp_avg, sqrt_rn(exp_avg_sq) + s.eps)
    return decay(p, s.decay) - s.step_size * update, (exp_avg, exp_avg_sq)
