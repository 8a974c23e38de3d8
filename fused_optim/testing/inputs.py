"""Parameters and gradients of tests and checks: random values, formed in float32 from a seed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def values(shapes: Sequence[Any], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Return normally distributed tensors, formed in float32."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for shape in shapes
    ]


def exact_values(shapes: Sequence[Any], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Return multiples of 1/8, the sum of whose squares has no rounding in any order."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(-16, 17, shape, generator=generator) / 8.0).to(dtype)
        for shape in ((s,) if isinstance(s, int) else s for s in shapes)
    ]


def parameters(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Parameter]:
    """Return new parameters with copies of ``tensors``."""
    return [Parameter(tensor.detach().clone().to(dtype or tensor.dtype)) for tensor in tensors]


def set_grads(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Set new gradients, as backward does after ``zero_grad()``."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.to(param.dtype).clone()


def state_of(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """Return the state of a parameter without the entries that are None."""
    return {k: v for k, v in optimizer.state.get(param, {}).items() if v is not None}
