"""Adamax."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import AdamaxHparams, AdamaxScalars
from fused_optim.rules.common import Rule, State, decay, pow_int


def adamax_scalars(hparams: AdamaxHparams, step: Tensor) -> AdamaxScalars:
    """Return the scalars of :func:`adamax`."""
    step_size = hparams.lr / (1.0 - pow_int(hparams.beta1, step))
    return AdamaxScalars(
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        step_size=step_size,
        eps=hparams.eps,
    )


def adamax(p: Tensor, g: Tensor, state: State, s: AdamaxScalars) -> tuple[Tensor, State]:
    """Adamax, Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980)."""
    exp_avg, exp_inf = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_inf = torch.maximum(decay(exp_inf, s.weight2), g.abs() + s.eps)
    return p - s.step_size * (exp_avg / exp_inf), (exp_avg, exp_inf)


ADAMAX = Rule(
    adamax,
    adamax_scalars,
    AdamaxHparams,
    AdamaxScalars,
    ("exp_avg", "exp_inf"),
    scalar_state=("step",),
    nonnegative=(("exp_inf", "beta2"),),
)
