"""Adam and AMSGrad."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import AdamHparams, AdamScalars, SparseAdamHparams
from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


def adam_scalars(hparams: AdamHparams, step: Tensor) -> AdamScalars:
    """Return the scalars of :func:`adam` and :func:`adam_amsgrad`."""
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


def sparse_adam_scalars(hparams: SparseAdamHparams, step: Tensor) -> AdamScalars:
    """Return the scalars of :func:`adam` for SparseAdam, which does not correct ``eps``.

    ``lr * sqrt(c2) / c1 * m / (sqrt(v) + eps)`` is Adam's step with ``eps / sqrt(c2)`` for ``eps``.
    """
    step_size = hparams.lr / (1.0 - pow_int(hparams.beta1, step))
    inv_bias_correction2_sqrt = 1.0 / sqrt_rn(1.0 - pow_int(hparams.beta2, step))
    return AdamScalars(
        decay=torch.zeros_like(hparams.beta1),
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        step_size=step_size,
        inv_bias_correction2_sqrt=inv_bias_correction2_sqrt,
        eps=hparams.eps * inv_bias_correction2_sqrt,
    )


def adam(p: Tensor, g: Tensor, state: State, s: AdamScalars) -> tuple[Tensor, State]:
    """Adam, Kingma and Ba 2015, algorithm 1 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_avg_sq = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    return decay(p, s.decay) - s.step_size * (exp_avg / denom), (exp_avg, exp_avg_sq)


def adam_amsgrad(p: Tensor, g: Tensor, state: State, s: AdamScalars) -> tuple[Tensor, State]:
    """AMSGrad, Reddi et al. 2018, algorithm 2 (https://openreview.net/forum?id=ryQu7f-RZ)."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    denom = sqrt_rn(max_exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    p = decay(p, s.decay) - s.step_size * (exp_avg / denom)
    return p, (exp_avg, exp_avg_sq, max_exp_avg_sq)


ADAM = Rule(
    adam,
    adam_scalars,
    AdamHparams,
    AdamScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    nonnegative=(("exp_avg_sq", "beta2"),),
    decays=True,
)
ADAM_AMSGRAD = ADAM._replace(
    update=adam_amsgrad,
    state_keys=(*ADAM.state_keys, "max_exp_avg_sq"),
    nonnegative=(*ADAM.nonnegative, ("max_exp_avg_sq", None)),
)
SPARSE_ADAM = ADAM._replace(
    form_scalars=sparse_adam_scalars, hparams=SparseAdamHparams, sparse="required"
)
