"""ASGD: gradient descent with an average of the parameters beside it."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.rules.common import Rule, State, decay, pow_real


class ASGDHparams(NamedTuple):
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
    hparams: ASGDHparams, step: Tensor, running: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], ASGDScalars]:
    """Scalars of :func:`asgd`, and those of the next step: torch.optim forms them one ahead."""
    lr, lambd, alpha, t0 = hparams
    eta, mu = running
    s = ASGDScalars(lambd * eta, eta, mu)
    eta = lr / pow_real(1.0 + lambd * lr * step, alpha)
    mu = 1.0 / torch.where(step - t0 > 1.0, step - t0, 1.0)
    return (eta, mu), s


def asgd(p: Tensor, g: Tensor, state: State, s: ASGDScalars) -> tuple[Tensor, State]:
    """ASGD, Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046), as torch.optim has it."""
    (ax,) = state
    p = decay(p, s.decay) - s.eta * g
    return p, (torch.where(s.mu == 1.0, p, ax + s.mu * (p - ax)),)


ASGD = Rule(
    asgd,
    asgd_scalars,
    ASGDHparams,
    ASGDScalars,
    ("ax",),
    scalar_state=("step", "eta", "mu"),
    fp32_keys=("ax",),
)
