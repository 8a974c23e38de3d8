"""Adagrad."""

from typing import NamedTuple

from torch import Tensor

from fused_optim.rules.common import Rule, State, sqrt_rn


class AdagradHparams(NamedTuple):
    """Options of Adagrad."""

    lr: Tensor
    lr_decay: Tensor
    eps: Tensor


class AdagradScalars(NamedTuple):
    """Scalars of :func:`adagrad`."""

    step_size: Tensor
    eps: Tensor


def adagrad_scalars(hparams: AdagradHparams, step: Tensor) -> AdagradScalars:
    """Scalars of :func:`adagrad`."""
    lr, lr_decay, eps = hparams
    return AdagradScalars(lr / (1.0 + (step - 1.0) * lr_decay), eps)


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
)
