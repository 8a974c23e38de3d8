"""Lion."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import LionHparams, LionScalars
from fused_optim.rules.common import Rule, State, decay


def lion_scalars(hparams: LionHparams, step: Tensor) -> LionScalars:
    """Return the scalars of :func:`lion`."""
    return LionScalars(
        decay=hparams.lr * hparams.weight_decay,
        lr=hparams.lr,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
    )


def lion(p: Tensor, g: Tensor, state: State, s: LionScalars) -> tuple[Tensor, State]:
    """Lion, Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675)."""
    (exp_avg,) = state
    mixed = s.beta1 * exp_avg + s.weight1 * g
    # the sign of NaN is NaN: torch.sign would return 0 and hide it
    sign = torch.where(mixed != mixed, mixed, (mixed > 0).to(p.dtype) - (mixed < 0).to(p.dtype))
    return decay(p, s.decay) - s.lr * sign, (decay(exp_avg, s.weight2) + s.weight2 * g,)


LION = Rule(lion, lion_scalars, LionHparams, LionScalars, ("exp_avg",), decays=True)
