"""LAMB."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import LAMBHparams, LAMBScalars
from fused_optim.rules.common import Reduction, Rule, State, decay, pow_int, sqrt_rn


def lamb_scalars(hparams: LAMBHparams, step: Tensor) -> LAMBScalars:
    """Return the scalars of :func:`lamb` that do not depend on the norms."""
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
    )


def lamb_direction(
    p: Tensor, g: Tensor, state: State, s: LAMBScalars
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the direction of Adam with weight decay added, and both new moments."""
    exp_avg, exp_avg_sq = state
    exp_avg = decay(exp_avg, s.weight1) + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = (s.inv_bias_correction1 * exp_avg) / (
        sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    )
    update = torch.where(s.weight_decay != 0, update + s.weight_decay * p, update)
    return update, exp_avg, exp_avg_sq


def lamb_map(p: Tensor, g: Tensor, state: State, s: LAMBScalars) -> tuple[Tensor, ...]:
    """Return the squares of the parameter and of the direction."""
    update, _, _ = lamb_direction(p, g, state, s)
    return p * p, update * update


def lamb_finalize(sums: tuple[Tensor, ...], numel: Tensor, s: LAMBScalars) -> LAMBScalars:
    """Form the step size of a tensor: lr times the trust ratio, which is 1 where a norm is 0."""
    weight_norm = torch.minimum(torch.maximum(sqrt_rn(sums[0]), s.low), s.high)
    update_norm = sqrt_rn(sums[1])
    trusts = (s.adapt != 0) & (weight_norm > 0) & (update_norm > 0)
    trust_ratio = torch.where(trusts, weight_norm / update_norm, 1.0)
    return s._replace(step_size=s.lr * trust_ratio)


def lamb(p: Tensor, g: Tensor, state: State, s: LAMBScalars) -> tuple[Tensor, State]:
    """LAMB, You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962)."""
    update, exp_avg, exp_avg_sq = lamb_direction(p, g, state, s)
    return p - s.step_size * update, (exp_avg, exp_avg_sq)


LAMB = Rule(
    lamb,
    lamb_scalars,
    LAMBHparams,
    LAMBScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    reduction=Reduction(lamb_map, lamb_finalize, num_sums=2),
    nonnegative=(("exp_avg_sq", "beta2"),),
)
