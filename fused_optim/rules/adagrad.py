"""Adagrad."""

from torch import Tensor

from fused_optim.kernels.rules.signatures import AdagradHparams, AdagradScalars
from fused_optim.rules.common import Rule, State, sqrt_rn


def adagrad_scalars(hparams: AdagradHparams, step: Tensor) -> AdagradScalars:
    """Return the scalars of :func:`adagrad`."""
    return AdagradScalars(
        step_size=hparams.lr / (1.0 + (step - 1.0) * hparams.lr_decay), eps=hparams.eps
    )


def adagrad(p: Tensor, g: Tensor, state: State, s: AdagradScalars) -> tuple[Tensor, State]:
    """Adagrad, Duchi et al. 2011, figure 1, diagonal (https://jmlr.org/papers/v12/duchi11a)."""
    (sum,) = state
    sum = sum + g * g
    return p - s.step_size * (g / (sqrt_rn(sum) + s.eps)), (sum,)


ADAGRAD = Rule(
    adagrad,
    adagrad_scalars,
    AdagradHparams,
    AdagradScalars,
    ("sum",),
    scalar_state=("step",),
    nonnegative=(("sum", None),),
    sparse="rows",
)
