"""Muon: the Triton counterpart of fused_optim/rules/muon.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import decay
from fused_optim.kernels.rules.signatures import (
    MuonApplyHparams,
    MuonApplyScalars,
    MuonHparams,
    MuonScalars,
)


@triton.jit
def muon_scalars(hparams, step):
    """Return the scalars of :func:`muon` and :func:`muon_nesterov`."""
    hparams = MuonHparams(*hparams)
    return MuonScalars(momentum=hparams.momentum, weight=1.0 - hparams.momentum)


@triton.jit
def muon_direction(g, momentum_buffer, s, NESTEROV: tl.constexpr):
    """Return the direction before its orthogonalization, and the new momentum."""
    s = MuonScalars(*s)
    momentum_buffer = s.momentum * momentum_buffer + s.weight * g
    if NESTEROV:
        return s.momentum * momentum_buffer + s.weight * g, momentum_buffer
    else:
        return momentum_buffer, momentum_buffer


@triton.jit
def muon(p, g, state, s):
    """Muon's momentum, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/)."""
    direction, momentum_buffer = muon_direction(g, state[0], s, False)
    return direction, (momentum_buffer,)


@triton.jit
def muon_nesterov(p, g, state, s):
    """Muon's Nesterov momentum, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/)."""
    direction, momentum_buffer = muon_direction(g, state[0], s, True)
    return direction, (momentum_buffer,)


@triton.jit
def muon_apply_scalars(hparams, step):
    """Return the scalars of :func:`muon_apply`."""
    hparams = MuonApplyHparams(*hparams)
    return MuonApplyScalars(decay=hparams.lr * hparams.weight_decay, lr=hparams.lr)


@triton.jit
def muon_apply(p, g, state, s):
    """Take a step along the orthogonalized direction ``g``, with decoupled weight decay."""
    s = MuonApplyScalars(*s)
    return decay(p, s.decay) - s.lr * g, state
