"""Adan."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import AdanHparams, AdanScalars
from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


def adan_no_prox_scalars(hparams: AdanHparams, step: Tensor) -> AdanScalars:
    """Return the scalars of :func:`adan` with the decay of AdamW."""
    return AdanScalars(
        is_first=torch.where(step == 1, 1.0, 0.0),
        decay=hparams.lr * hparams.weight_decay,
        lr=hparams.lr,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        beta2=hparams.beta2,
        weight2=1.0 - hparams.beta2,
        weight3=1.0 - hparams.beta3,
        inv_bias_correction1=1.0 / (1.0 - pow_int(hparams.beta1, step)),
        diff_share=hparams.beta2 / (1.0 - pow_int(hparams.beta2, step)),
        inv_bias_correction3_sqrt=1.0 / sqrt_rn(1.0 - pow_int(hparams.beta3, step)),
        eps=hparams.eps,
    )


def adan_scalars(hparams: AdanHparams, step: Tensor) -> AdanScalars:
    """Return the scalars of :func:`adan`: its proximal decay is AdamW's at a lower rate."""
    lr = hparams.lr / (1.0 + hparams.lr * hparams.weight_decay)
    return adan_no_prox_scalars(
        AdanHparams(
            lr=lr,
            beta1=hparams.beta1,
            beta2=hparams.beta2,
            beta3=hparams.beta3,
            eps=hparams.eps,
            weight_decay=hparams.weight_decay,
        ),
        step,
    )


def adan(p: Tensor, g: Tensor, state: State, s: AdanScalars) -> tuple[Tensor, State]:
    """Adan, Xie et al. 2022, algorithm 1 (https://arxiv.org/abs/2208.06677)."""
    exp_avg, exp_avg_diff, exp_avg_sq, pre_grad = state
    diff = g - torch.where(s.is_first != 0, g, pre_grad)
    lookahead = g + s.beta2 * diff
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_diff = s.beta2 * exp_avg_diff + s.weight2 * diff
    exp_avg_sq = decay(exp_avg_sq, s.weight3) + (s.weight3 * lookahead) * lookahead
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction3_sqrt + s.eps
    numerator = s.inv_bias_correction1 * exp_avg + s.diff_share * exp_avg_diff
    p = decay(p, s.decay) - s.lr * (numerator / denom)
    return p, (exp_avg, exp_avg_diff, exp_avg_sq, g)


ADAN = Rule(
    adan,
    adan_scalars,
    AdanHparams,
    AdanScalars,
    ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta3"),),
    decays=True,
)
ADAN_NO_PROX = ADAN._replace(form_scalars=adan_no_prox_scalars)
