"""Normalization of the rows of an orthogonalized matrix by their second moments: NorMuon.

Source: Li et al. 2025, algorithm 1, https://arxiv.org/abs/2510.05491
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.matrix.newton_schulz import NewtonSchulz, iterate, lr_factor

EPS = 1e-10  # of the paper: added to the root of the second moment


class RowNormalization(NamedTuple):
    """The settings of NorMuon.

    Attributes:
        newton_schulz: settings of the orthogonalization before.
        beta2: decay rate of the second moments of the rows.
    """

    newton_schulz: NewtonSchulz
    beta2: float

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the directions."""
        return self.newton_schulz.dtype

    @property
    def max_batch(self) -> int | None:
        """Maximum number of matrices that are multiplied at once."""
        return self.newton_schulz.max_batch

    @property
    def adjust_lr(self) -> str:
        """Adjustment of the learning rate by the shape."""
        return self.newton_schulz.adjust_lr


def normalize_rows(
    matrices: Tensor, states: tuple[Tensor, ...], settings: RowNormalization
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return ``matrices`` orthogonalized, each row divided by the root of its second moment.

    The Frobenius norm is then that of Muon's direction: with ``"match_rms_adamw"`` 0.2 for each
    element, else the norm before the division times :func:`lr_factor`.

    Args:
        matrices: batch ``[k, rows, columns]`` in the dtype of the products.
        states: second moment of each row, float32 ``[k, rows, 1]``.
        settings: coefficients, decay rate and scale.
    """
    rows, columns = matrices.shape[-2:]
    x = iterate(matrices, settings.newton_schulz)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    (moments,) = states
    if x.numel() == 0:
        return x, states
    squares = wide.square().mean(-1, keepdim=True).float()
    moments = settings.beta2 * moments + (1.0 - settings.beta2) * squares
    divided = wide / (moments.sqrt() + EPS).to(wide.dtype)
    norm = torch.linalg.vector_norm(divided, dim=(-2, -1), keepdim=True)
    if settings.adjust_lr == "match_rms_adamw":
        target = torch.full_like(norm, 0.2 * math.sqrt(rows * columns))
    else:
        before = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
        target = before * lr_factor(rows, columns, settings.adjust_lr)
    # a matrix of zeros has no direction
    scale = torch.where(norm > 0, target / norm, 0.0)
    return (divided * scale).to(x.dtype), (moments,)
