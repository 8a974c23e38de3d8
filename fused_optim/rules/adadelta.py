"""Adadelta."""

from typing import NamedTuple

from torch import Tensor

from fused_optim.rules.common import Rule, State, keep, root


class AdadeltaHyper(NamedTuple):
    """Options of Adadelta."""

    lr: Tensor
    rho: Tensor
    eps: Tensor


class AdadeltaScalars(NamedTuple):
    """Scalars of :func:`adadelta`."""

    lr: Tensor
    weight: Tensor
    eps: Tensor


def adadelta_scalars(hyper: AdadeltaHyper, step: Tensor) -> AdadeltaScalars:
    """Scalars of :func:`adadelta`."""
    return AdadeltaScalars(hyper.lr, 1.0 - hyper.rho, hyper.eps)


def adadelta(p: Tensor, g: Tensor, state: State, h: AdadeltaScalars) -> tuple[Tensor, State]:
    """Adadelta, Zeiler 2012, algorithm 1 (https://arxiv.org/abs/1212.5701)."""
    square_avg, acc_delta = state
    square_avg = keep(square_avg, h.weight) + (h.weight * g) * g
    delta = (root(acc_delta + h.eps) / root(square_avg + h.eps)) * g
    acc_delta = keep(acc_delta, h.weight) + (h.weight * delta) * delta
    return p - h.lr * delta, (square_avg, acc_delta)


ADADELTA = Rule(
    adadelta,
    adadelta_scalars,
    AdadeltaHyper,
    AdadeltaScalars,
    ("square_avg", "acc_delta"),
    counters=("step",),
    unsigned=(("square_avg", "rho"), ("acc_delta", "rho")),
)
