"""ASGD: gradient descent with a running average of the parameters."""

import torch
from torch import Tensor

from fused_optim.kernels.rules.signatures import ASGDHparams, ASGDScalars
from fused_optim.rules.common import Rule, State, decay, pow_real


def asgd_scalars(
    hparams: ASGDHparams, step: Tensor, running: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], ASGDScalars]:
    """Return the scalars of :func:`asgd`, and eta and mu of the next step, as torch.optim does."""
    eta, mu = running
    s = ASGDScalars(decay=hparams.lambd * eta, eta=eta, mu=mu)
    eta = hparams.lr / pow_real(1.0 + hparams.lambd * hparams.lr * step, hparams.alpha)
    mu = 1.0 / torch.where(step - hparams.t0 > 1.0, step - hparams.t0, 1.0)
    return (eta, mu), s


def asgd(p: Tensor, g: Tensor, state: State, s: ASGDScalars) -> tuple[Tensor, State]:
    """ASGD, Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046), as in torch.optim."""
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
