"""StableAdamW."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import AdamHparams, StableAdamWScalars
from fused_optim.rules.common import Reduction, Rule, State, decay, pow_int, sqrt_rn


def stable_adamw_scalars(hparams: AdamHparams, step: Tensor) -> StableAdamWScalars:
    """Return the scalars of :func:`stable_adamw` that do not depend on the mean square."""
    return StableAdamWScalars(
        weight1=(1.0 - hparams.beta1) / (1.0 - pow_int(hparams.beta1, step)),
        weight2=(1.0 - hparams.beta2) / (1.0 - pow_int(hparams.beta2, step)),
        eps=hparams.eps,
        eps_sq=hparams.eps * hparams.eps,
        lr=hparams.lr,
        weight_decay=hparams.weight_decay,
    )


def stable_adamw_map(
    p: Tensor, g: Tensor, state: State, s: StableAdamWScalars
) -> tuple[Tensor, ...]:
    """Return the squared gradient over its second moment estimate."""
    _, exp_avg_sq = state
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    return (g * g / torch.where(exp_avg_sq < s.eps_sq, s.eps_sq, exp_avg_sq),)


def stable_adamw_finalize(
    sums: tuple[Tensor, ...], numel: Tensor, s: StableAdamWScalars
) -> StableAdamWScalars:
    """Form decay and step size of a tensor: divided by its root mean square where that is > 1."""
    rms = sqrt_rn(sums[0] / numel)
    rate = s.lr / torch.where(rms < 1.0, 1.0, rms)
    return s._replace(decay=rate * s.weight_decay, step_size=rate)


def stable_adamw(p: Tensor, g: Tensor, state: State, s: StableAdamWScalars) -> tuple[Tensor, State]:
    """StableAdamW, Wortsman et al. 2023, algorithm 2 (https://arxiv.org/abs/2304.13013)."""
    exp_avg, exp_avg_sq = state
    exp_avg = decay(exp_avg, s.weight1) + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    update = exp_avg / (sqrt_rn(exp_avg_sq) + s.eps)
    return decay(p, s.decay) - s.step_size * update, (exp_avg, exp_avg_sq)


STABLE_ADAMW = Rule(
    stable_adamw,
    stable_adamw_scalars,
    AdamHparams,
    StableAdamWScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step",),
    reduction=Reduction(stable_adamw_map, stable_adamw_finalize, num_sums=1),
    nonnegative=(("exp_avg_sq", "beta2"),),
    decays=True,
)
