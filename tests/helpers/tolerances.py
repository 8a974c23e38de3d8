"""The tolerances of all tests: errors are bounded by those that rounding makes unavoidable."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def join_flat(tensors: Iterable[Any]) -> Tensor:
    """Return the elements of all tensors or arrays as one vector.

    The worst error of a single element is luck, for the baseline too.
    """
    return torch.cat([torch.as_tensor(tensor).detach().flatten() for tensor in tensors])


def assert_as_accurate(name: str, actual: Tensor, baseline: Tensor, exact: Tensor) -> None:
    """Bound the worst error of ``actual`` by twice that of ``baseline``, plus one rounding.

    Args:
        name: subject of the message.
        actual: result under test.
        baseline: the same result by torch.optim or an oracle, in the dtype of ``actual``.
        exact: the same result in float64.

    Raises:
        AssertionError: an element of ``actual`` is not finite, or the error exceeds the bound.
    """
    if actual.numel() == 0:
        return
    actual, baseline = actual.detach(), baseline.detach()
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    rounding = torch.finfo(actual.dtype).eps * exact.abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    baseline_error = (baseline.double() - exact).abs().max().item()
    budget = 2.0 * (baseline_error + rounding)
    assert error <= budget, (
        f"{name}: error {error:.3e}, budget {budget:.3e} (baseline {baseline_error:.3e})"
    )


def assert_same_bits(name: str, actual: Tensor, expected: Tensor) -> None:
    """Check that two tensors have the same shape, dtype and bits, but for the bits of a NaN."""
    assert actual.shape == expected.shape, (
        f"{name}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    )
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} is not {expected.dtype}"
    if actual.itemsize == 1 and actual.is_floating_point():
        actual, expected = actual.view(torch.uint8), expected.view(torch.uint8)  # codes
    same = (actual == expected) & (actual.signbit() == expected.signbit())
    different = ~(same | (actual.isnan() & expected.isnan()))
    count = int(different.sum())
    if count:
        i = different.flatten().nonzero()[0].item()
        pair = actual.flatten()[i].item(), expected.flatten()[i].item()
        raise AssertionError(f"{name}: {count} of {actual.numel()} differ, first at {i}: {pair}")
