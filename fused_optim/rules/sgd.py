"""Gradient descent, with and without momentum."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import MomentumScalars, SGDHparams, SGDScalars
from fused_optim.rules.common import Rule, State


def sgd_scalars(hparams: SGDHparams, step: Tensor) -> SGDScalars:
    """Return the scalars of :func:`sgd`."""
    return SGDScalars(lr=hparams.lr)


def sgd(p: Tensor, g: Tensor, state: State, s: SGDScalars) -> tuple[Tensor, State]:
    """Gradient descent without momentum."""
    return p - s.lr * g, state


def sgd_momentum_scalars(hparams: SGDHparams, step: Tensor) -> MomentumScalars:
    """Return the scalars of :func:`sgd_momentum` and :func:`sgd_nesterov`, without dampening."""
    return MomentumScalars(
        lr=hparams.lr, momentum=hparams.momentum, weight=torch.ones_like(hparams.momentum)
    )


def sgd_dampened_scalars(hparams: SGDHparams, step: Tensor) -> MomentumScalars:
    """Return the scalars of :func:`sgd_momentum`: the first gradient is not dampened."""
    return MomentumScalars(
        lr=hparams.lr,
        momentum=hparams.momentum,
        weight=torch.where(step == 1, 1.0, 1.0 - hparams.dampening),
    )


def sgd_momentum(p: Tensor, g: Tensor, state: State, s: MomentumScalars) -> tuple[Tensor, State]:
    """Heavy-ball momentum as torch.optim.SGD defines it: the rate stays outside the buffer."""
    (momentum_buffer,) = state
    momentum_buffer = s.momentum * momentum_buffer + s.weight * g
    return p - s.lr * momentum_buffer, (momentum_buffer,)


def sgd_nesterov(p: Tensor, g: Tensor, state: State, s: MomentumScalars) -> tuple[Tensor, State]:
    """Nesterov momentum, Sutskever et al. 2013 (https://proceedings.mlr.press/v28/sutskever13)."""
    (momentum_buffer,) = state
    momentum_buffer = s.momentum * momentum_buffer + s.weight * g
    return p - s.lr * (g + s.momentum * momentum_buffer), (momentum_buffer,)


SGD = Rule(sgd, sgd_scalars, SGDHparams, SGDScalars, sparse="rows")
SGD_MOMENTUM = Rule(
    sgd_momentum,
    sgd_momentum_scalars,
    SGDHparams,
    MomentumScalars,
    ("momentum_buffer",),
    sparse="dense",
    late_keys=("momentum_buffer",),
)
SGD_DAMPENED = SGD_MOMENTUM._replace(form_scalars=sgd_dampened_scalars, scalar_state=("step",))
SGD_NESTEROV = SGD_MOMENTUM._replace(update=sgd_nesterov)
