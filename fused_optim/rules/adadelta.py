"""Adadelta."""

from torch import Tensor

from fused_optim.kernels.rules.signatures import AdadeltaHparams, AdadeltaScalars
from fused_optim.rules.common import Rule, State, decay, sqrt_rn


def adadelta_scalars(hparams: AdadeltaHparams, step: Tensor) -> AdadeltaScalars:
    """Return the scalars of :func:`adadelta`."""
    return AdadeltaScalars(lr=hparams.lr, weight=1.0 - hparams.rho, eps=hparams.eps)


def adadelta(p: Tensor, g: Tensor, state: State, s: AdadeltaScalars) -> tuple[Tensor, State]:
    """Adadelta, Zeiler 2012, algorithm 1 (https://arxiv.org/abs/1212.5701)."""
    square_avg, acc_delta = state
    square_avg = decay(square_avg, s.weight) + (s.weight * g) * g
    delta = (sqrt_rn(acc_delta + s.eps) / sqrt_rn(square_avg + s.eps)) * g
    acc_delta = decay(acc_delta, s.weight) + (s.weight * delta) * delta
    return p - s.lr * delta, (square_avg, acc_delta)


ADADELTA = Rule(
    adadelta,
    adadelta_scalars,
    AdadeltaHparams,
    AdadeltaScalars,
    ("square_avg", "acc_delta"),
    scalar_state=("step",),
    nonnegative=(("square_avg", "rho"), ("acc_delta", "rho")),
)
