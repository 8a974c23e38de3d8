"""Products of matrices that are symmetric: all of them by torch, or half of each by QuACK.

QuACK computes the tiles of one triangle and writes each twice. It is an extra: a base installation
does not have it.

Source: https://github.com/Dao-AILab/quack, ``quack.gemm_interface.gemm_symmetric`` of 0.6.5
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

QUACK_DTYPES = (torch.bfloat16, torch.float16)
QUACK_CAPABILITIES = (9, 10, 11, 12)  # major compute capabilities; its kernel for 8 is a stub
QUACK_MIN_SIZE = 256  # of both dims; gram-newton-schulz leaves smaller ones to torch as well
QUACK_ALIGNMENT = 16  # in bytes: its kernel reads rows that begin at a multiple of it


class Products(NamedTuple):
    """A way to form symmetric products.

    Attributes:
        multiply: function ``(a, b, c, alpha, beta)`` that returns ``alpha * a @ b + beta * c`` for
            batches a [k, m, n], b [k, n, m] and c [k, m, m], where ``a @ b`` and c are symmetric.
        describe_unsupported: function from device and dtype of the matrices to the requirement that
            they fail, worded to follow "must", or None. It raises ImportError if a package lacks.
    """

    multiply: Callable[..., Tensor]
    describe_unsupported: Callable[[torch.device, torch.dtype], str | None]


def multiply_by_torch(
    a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """Return ``alpha * a @ b + beta * c`` by torch; ``alpha`` is 1 without c."""
    if c is None:
        return torch.bmm(a, b)
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)


def multiply_by_quack(
    a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """Return ``alpha * a @ b + beta * c`` by QuACK; by torch if a dim is small or not aligned."""
    multiple = QUACK_ALIGNMENT // a.itemsize
    rows, columns = a.shape[-2:]
    if min(rows, columns) < QUACK_MIN_SIZE or rows % multiple or columns % multiple:
        return multiply_by_torch(a, b, c, alpha, beta)
    result: Tensor = _load_quack()(a, b, C=c, alpha=alpha, beta=beta)
    return result


def find_capability(device: torch.device) -> int | None:
    """Return the major compute capability of an NVIDIA GPU; None for other devices."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)[0]


def _describe_unsupported_by_quack(device: torch.device, dtype: torch.dtype) -> str | None:
    """See :class:`Products`; the meta device stands for any."""
    _load_quack()
    if dtype not in QUACK_DTYPES:
        return (
            "have products in torch.bfloat16 or torch.float16 for ns_products='quack', got "
            f"{dtype}: set ns_dtype"
        )
    if device.type != "meta" and find_capability(device) not in QUACK_CAPABILITIES:
        return (
            "be on an NVIDIA GPU of compute capability 9 to 12 for ns_products='quack', got "
            f"{device}: use ns_products='torch'"
        )
    return None


def _load_quack() -> Callable[..., Any]:
    """Return the function of QuACK.

    Raises:
        ImportError: it is not installed, or has no such function.
    """
    try:
        found: Callable[..., Any] = importlib.import_module("quack.gemm_interface").gemm_symmetric
    except (ImportError, AttributeError) as error:
        raise ImportError(
            "ns_products='quack' needs the package quack-kernels, with "
            "quack.gemm_interface.gemm_symmetric: pip install fused-optim[quack]"
        ) from error
    return found


PRODUCTS = {
    "torch": Products(multiply_by_torch, lambda device, dtype: None),
    "quack": Products(multiply_by_quack, _describe_unsupported_by_quack),
}
