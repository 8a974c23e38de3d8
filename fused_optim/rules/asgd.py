"""ASGD: gradient descent with an average of the parameters beside it."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, keep, real_power


class ASGDHyper(NamedTuple):
    """Options of ASGD."""

    lr: Tensor
    lambd: Tensor
    alpha: Tensor
    t0: Tensor


class ASGDScalars(NamedTuple):
    """Scalars of :func:`asgd`."""

    decay: Tensor
    eta: Tensor
    mu: Tensor


def asgd_scalars(
    hyper: ASGDHyper, step: Tensor, running: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], ASGDScalars]:
    """Scalars of :func:`asgd`, and those of the next step: torch.optim forms them one ahead."""
    lr, lambd, alpha, t0 = hyper
    eta, mu = running
    h = ASGDScalars(lambd * eta, eta, mu)
    eta = lr / real_power(1.0 + lambd * lr * step, alpha)
    mu = 1.0 / torch.where(step - t0 > 1.0, step - t0, 1.0)
    return (eta, mu), h


def asgd(p: Tensor, g: Tensor, state: State, h: ASGDScalars) -> tuple[Tensor, State]:
    """ASGD, Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046), as torch.optim has it."""
    (ax,) = state
    p = keep(p, h.decay) - h.eta * g
    return p, (torch.where(h.mu == 1.0, p, ax + h.mu * (p - ax)),)


ASGD = Rule(
    asgd,
    asgd_scalars,
    ASGDHyper,
    ASGDScalars,
    ("ax",),
    counters=("step", "eta", "mu"),
    exact=("ax",),
)
