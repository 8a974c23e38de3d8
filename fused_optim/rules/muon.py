"""Muon: the two elementwise passes around the orthogonalization of the momentum."""

from torch import Tensor

from fused_optim.kernels.rules.signatures import (
    MuonApplyHparams,
    MuonApplyScalars,
    MuonHparams,
    MuonScalars,
)
from fused_optim.rules.common import Rule, State, decay


def muon_scalars(hparams: MuonHparams, step: Tensor) -> MuonScalars:
    """Return the scalars of :func:`muon` and :func:`muon_nesterov`."""
    return MuonScalars(momentum=hparams.momentum, weight=1.0 - hparams.momentum)


def muon_direction(
    g: Tensor, momentum_buffer: Tensor, s: MuonScalars, nesterov: bool
) -> tuple[Tensor, Tensor]:
    """Return the direction before its orthogonalization, and the new momentum."""
    momentum_buffer = s.momentum * momentum_buffer + s.weight * g
    if nesterov:
        return s.momentum * momentum_buffer + s.weight * g, momentum_buffer
    return momentum_buffer, momentum_buffer


def muon(p: Tensor, g: Tensor, state: State, s: MuonScalars) -> tuple[Tensor, State]:
    """Muon's momentum, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/)."""
    direction, momentum_buffer = muon_direction(g, state[0], s, nesterov=False)
    return direction, (momentum_buffer,)


def muon_nesterov(p: Tensor, g: Tensor, state: State, s: MuonScalars) -> tuple[Tensor, State]:
    """Muon's Nesterov momentum, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/)."""
    direction, momentum_buffer = muon_direction(g, state[0], s, nesterov=True)
    return direction, (momentum_buffer,)


def muon_apply_scalars(hparams: MuonApplyHparams, step: Tensor) -> MuonApplyScalars:
    """Return the scalars of :func:`muon_apply`."""
    return MuonApplyScalars(decay=hparams.lr * hparams.weight_decay, lr=hparams.lr)


def muon_apply(p: Tensor, g: Tensor, state: State, s: MuonApplyScalars) -> tuple[Tensor, State]:
    """Take a step along the orthogonalized direction ``g``, with decoupled weight decay."""
    return decay(p, s.decay) - s.lr * g, state


MUON_APPLY = Rule(muon_apply, muon_apply_scalars, MuonApplyHparams, MuonApplyScalars, decays=True)
MUON = Rule(muon, muon_scalars, MuonHparams, MuonScalars, ("momentum_buffer",))
MUON_NESTEROV = MUON._replace(update=muon_nesterov)
