"""ASGD: the same page as fused_optim/rules/asgd.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay, pow_real


@triton.jit
def asgd_scalars(hparams, step, running):
    """Scalars of :func:`asgd`, and those of the next step: torch.optim forms them one ahead."""
    lr, lambd, alpha, t0 = hparams
    eta, mu = running
    s = (lambd * eta, eta, mu)
    eta = lr / pow_real(1.0 + lambd * lr * step, alpha)
    mu = 1.0 / tl.where(step - t0 > 1.0, step - t0, 1.0)
    return (eta, mu), s


@triton.jit
def asgd(p, g, state, s):
    """ASGD, Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046), as torch.optim has it."""
    (ax,) = state
    decay, eta, mu = s
    p = decay(p, decay) - eta * g
    return p, (tl.where(mu == 1.0, p, ax + mu * (p - ax)),)
