"""ASGD: the Triton counterpart of fused_optim/rules/asgd.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, pow_real
from fused_optim.kernels.rules.signatures import ASGDHparams, ASGDScalars


@triton.jit
def asgd_scalars(hparams, step, running):
    """Return the scalars of :func:`asgd`, and eta and mu of the next step, as torch.optim does."""
    hparams = ASGDHparams(*hparams)
    eta, mu = running
    s = ASGDScalars(decay=hparams.lambd * eta, eta=eta, mu=mu)
    eta = hparams.lr / pow_real(1.0 + hparams.lambd * hparams.lr * step, hparams.alpha)
    mu = 1.0 / tl.where(step - hparams.t0 > 1.0, step - hparams.t0, 1.0)
    return (eta, mu), s


@triton.jit
def asgd(p, g, state, s):
    """ASGD, Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046), as in torch.optim."""
    (ax,) = state
    s = ASGDScalars(*s)
    p = decay(p, s.decay) - s.eta * g
    return p, (tl.where(s.mu == 1.0, p, ax + s.mu * (p - ax)),)
