"""Orthogonalization by Newton-Schulz iterations: an approximation of the polar factor.

For a matrix with the singular value decomposition ``U S V^T`` the result is ``U f(S) V^T``, where f
is the composition of the odd polynomials ``a x + b x^3 + c x^5`` of all steps.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.matrix.symmetric_products import PRODUCTS, multiply_by_torch

Multiply = Callable[..., Tensor]
Coefficients = tuple[float, float, float]
DEFAULT_COEFFICIENTS: Coefficients = (3.4445, -4.775, 2.0315)
# Amsel et al. 2025, "The Polar Express", https://arxiv.org/abs/2505.16932: polynomials of degree 5
# that are optimal, one after the other, for singular values in [1e-3, 1]
OPTIMAL: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
# rounding errors may push a singular value above 1: the authors divide x by 1.01 in these steps
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in OPTIMAL),
    (1.875, -1.25, 0.375),
)
GRAM_ASPECT = 2.0  # above this ratio of the dims the Gram iteration needs fewer operations


class NewtonSchulz(NamedTuple):
    """The settings of an orthogonalization.

    Attributes:
        coefficients: coefficients (a, b, c) of each step.
        eps: least norm by which a matrix is divided.
        algorithm: ``"standard"``, ``"gram"``, or ``"auto"``: Gram where the aspect is above 2.
        adjust_lr: factor of the result by its shape, which adjusts the learning rate:
            ``"original"`` or ``"match_rms_adamw"``.
        dtype: dtype of the products; None for bf16, float32 on the CPU.
        max_batch: maximum number of matrices that are multiplied at once, or None.
        products: name of the way to form symmetric products, a key of
            :data:`fused_optim.matrix.symmetric_products.PRODUCTS`.
    """

    coefficients: tuple[Coefficients, ...]
    eps: float
    algorithm: str
    adjust_lr: str
    dtype: torch.dtype | None
    max_batch: int | None
    products: str = "torch"


def lr_factor(rows: int, columns: int, adjust_lr: str) -> float:
    """Return the factor of the learning rate of a matrix, as ``adjust_lr_fn`` in torch.optim.Muon.

    ``"original"``: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/;
    ``"match_rms_adamw"``: Liu et al. 2025, https://arxiv.org/abs/2502.16982
    """
    if adjust_lr == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if columns else 1.0


def direction_factor(rows: int, columns: int, settings: NewtonSchulz) -> float:
    """Return :func:`lr_factor` with the adjustment of ``settings``."""
    return lr_factor(rows, columns, settings.adjust_lr)


def orthogonalize(
    matrices: Tensor, states: tuple[Tensor, ...], settings: NewtonSchulz
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return ``matrices``, orthogonalized.

    Args:
        matrices: batch ``[k, rows, columns]`` in the dtype of the products.
        states: none; returned unchanged.
        settings: coefficients and algorithm.
    """
    return iterate(matrices, settings), states


def iterate(matrices: Tensor, settings: NewtonSchulz) -> Tensor:
    """Return the orthogonalized ``matrices`` [k, rows, columns]."""
    if matrices.numel() == 0:
        return matrices
    rows, columns = matrices.shape[-2:]
    x = matrices.mT if rows > columns else matrices
    # in float64, as the squares of large elements overflow; and rounded to float32 only, as the
    # error of a bf16 scale would be one of all singular values
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float64)
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = (1.0 / norm.clamp(min=settings.eps)).to(wide)
    x = torch.mul(x, scale, out=torch.empty_like(x))  # rounded at once, without a wide copy
    aspect = max(rows, columns) / min(rows, columns)
    gram = settings.algorithm == "gram" or (settings.algorithm == "auto" and aspect > GRAM_ASPECT)
    iteration = iterate_gram if gram else iterate_standard
    x = iteration(x, settings.coefficients, PRODUCTS[settings.products].multiply)
    return x.mT if rows > columns else x


def iterate_standard(
    x: Tensor, coefficients: Sequence[Coefficients], multiply: Multiply = multiply_by_torch
) -> Tensor:
    """Apply each step to ``x`` [k, m, n] itself, with two products of m x n and one of m x m.

    Args:
        x: matrices.
        coefficients: coefficients of each step.
        multiply: function that forms symmetric products.
    """
    for a, b, c in coefficients:
        gram = multiply(x, x.mT)
        polynomial = multiply(gram, gram, gram, alpha=c, beta=b)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def iterate_gram(
    x: Tensor, coefficients: Sequence[Coefficients], multiply: Multiply = multiply_by_torch
) -> Tensor:
    """Apply the steps to the Gram matrix of ``x`` [k, m, n]; restart once, for the rounding errors.

    A step multiplies x from the left by a polynomial of its Gram matrix. All these commute, so that
    their product is formed from matrices of m x m, and x is multiplied twice.

    Args:
        x: matrices.
        coefficients: coefficients of each step.
        multiply: function that forms symmetric products.

    Source: Zhang et al. 2025, https://github.com/Dao-AILab/gram-newton-schulz
    """
    half = (len(coefficients) + 1) // 2
    for part in (coefficients[:half], coefficients[half:]):
        if part:
            x = torch.bmm(_multiply_polynomials(multiply(x, x.mT), part, multiply), x)
    return x


def _multiply_polynomials(
    gram: Tensor, coefficients: Sequence[Coefficients], multiply: Multiply
) -> Tensor:
    """Return the product of the polynomials of all steps, from the Gram matrix before them.

    All factors are polynomials of one symmetric matrix, so that every product is symmetric too.
    """
    product = None
    for i, (a, b, c) in enumerate(coefficients):
        polynomial = multiply(gram, gram, gram, alpha=c, beta=b)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else multiply(polynomial, product)
        if i + 1 < len(coefficients):
            gram = multiply(polynomial, multiply(gram, polynomial))
    assert product is not None
    return product
