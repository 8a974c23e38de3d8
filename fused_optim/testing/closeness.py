"""The policy of closeness, the only one: errors are bounded by those that rounding makes.

The library's own tests, ``fused-optim check`` and :func:`fused_optim.testing.assert_equivalent`
use it alike.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# float64 is compared with float64, which has roundings of its own: this part of the largest value
# is far above them, and far below a scalar that was formed in float32
FLOAT64_TOLERANCE = 1e-11
# what the order of a float64 sum may change
SUM_TOLERANCE = 1e-13


class Spacing(NamedTuple):
    """The distance of two neighbours in a format.

    Attributes:
        relative: distance relative to the value.
        smallest: smallest distance, next to zero.
    """

    relative: float
    smallest: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Spacing":
        """Return the spacing of a dtype."""
        limits = torch.finfo(dtype)
        return cls(limits.eps, limits.smallest_normal * limits.eps)


FLOAT32 = Spacing.of(torch.float32)
BF16 = Spacing.of(torch.bfloat16)
# formats with a spacing of their own; others have that of the parameter's dtype. Values that share
# a scale are compared with the largest of them
SPACING = {
    "master": FLOAT32,
    "split": FLOAT32,
    "split24": Spacing(2.0**-15, BF16.smallest),
    "kahan": Spacing(2.0**-15, BF16.smallest),
    "stochastic": BF16,
    "fp32": FLOAT32,
    "bf16": BF16,
    "int8": Spacing(2.0**-4, BF16.smallest),
    "fp8": Spacing(2.0**-2, BF16.smallest),
}


class Closeness(NamedTuple):
    """The worst error of a result against float64, and its budget.

    Attributes:
        error: largest difference from float64; infinite if an element is not finite.
        budget: largest difference that is allowed.
        baseline: error of the implementation that the result is compared with; infinite if that is
            not finite, and then any finite result is close.
        ulp: distance of two neighbours at the largest value.
    """

    error: float
    budget: float
    baseline: float = 0.0
    ulp: float = 1.0

    @property
    def close(self) -> bool:
        """True if the error is within its budget."""
        return math.isfinite(self.error) and self.error <= self.budget

    @property
    def ulps(self) -> float:
        """The error in ulps of the largest value."""
        return self.error / self.ulp if self.error else 0.0

    @property
    def budget_ulps(self) -> float:
        """The budget in ulps of the largest value."""
        return self.budget / self.ulp if self.budget else 0.0


def join_flat(tensors: Iterable[Any]) -> Tensor:
    """Return the elements of all tensors or arrays as one vector.

    The worst error of a single element is luck, for the baseline too.
    """
    return torch.cat([torch.as_tensor(tensor).detach().flatten() for tensor in tensors])


def _worst_error(result: Tensor, exact: Tensor) -> float:
    """Return the largest difference from float64; infinite if an element is not finite."""
    error: float = (result.double() - exact).abs().max().item()
    return error if math.isfinite(error) else math.inf


def measure(
    actual: Tensor, baseline: Tensor, exact: Tensor, spacing: Spacing | None = None
) -> Closeness:
    """Measure the worst error, and allow twice that of ``baseline``, plus one rounding.

    Args:
        actual: result under test.
        baseline: the same result by torch.optim or an oracle, in the same arithmetic.
        exact: the same result in float64.
        spacing: distance of two neighbours in the format of ``actual``; that of its dtype by
            default.
    """
    if actual.numel() == 0:
        return Closeness(0.0, 0.0)
    actual, baseline = actual.detach(), baseline.detach()
    largest = exact.abs().max().item()
    spacing = spacing or Spacing.of(actual.dtype)
    ulp = max(spacing.relative * largest, spacing.smallest)
    error, baseline_error = _worst_error(actual, exact), _worst_error(baseline, exact)
    budget = 2.0 * (baseline_error + ulp)
    if actual.dtype is torch.float64:
        budget = max(budget, FLOAT64_TOLERANCE * largest)
    return Closeness(error, budget, baseline_error, ulp)


def assert_as_accurate(name: str, actual: Tensor, baseline: Tensor, exact: Tensor) -> None:
    """Check that the error of ``actual`` is within the budget of :func:`measure`.

    Args:
        name: subject of the message.
        actual: result under test.
        baseline: the same result by torch.optim or an oracle, in the dtype of ``actual``.
        exact: the same result in float64.

    Raises:
        AssertionError: an element of ``actual`` is not finite, or the error exceeds the budget.
    """
    found = measure(actual, baseline, exact)
    if not found.close or math.isinf(found.baseline):
        raise AssertionError(f"{name}: {describe(found)}")


def describe(found: Closeness) -> str:
    """Return an error and its budget in words."""
    if math.isinf(found.error):
        return "not finite"
    if math.isinf(found.baseline):
        return "the baseline is not finite"
    return (
        f"error {found.error:.3e}, budget {found.budget:.3e} (baseline {found.baseline:.3e}); "
        f"{found.ulps:.3g} of {found.budget_ulps:.3g} ulps of the largest value"
    )


def _ordered(tensor: Tensor) -> Tensor:
    """Return integers in the order of the values; neighbours differ by 1, and so do the zeros."""
    if not tensor.is_floating_point():
        return tensor.long()
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.contiguous().view(integers[tensor.itemsize]).long()
    lowest = -(1 << (8 * tensor.itemsize - 1))
    return torch.where(bits < 0, lowest - bits - 1, bits)


def find_different(actual: Tensor, expected: Tensor) -> Tensor:
    """Return True for each element whose bits differ; the bits of a NaN are free."""
    if actual.itemsize == 1 and actual.is_floating_point():
        actual, expected = actual.view(torch.uint8), expected.view(torch.uint8)  # codes
    same = (actual == expected) & (actual.signbit() == expected.signbit())
    return ~(same | (actual.isnan() & expected.isnan()))


def measure_bits(actual: Tensor, expected: Tensor) -> Closeness:
    """Measure how many neighbours apart two tensors of one dtype are at most; none are allowed."""
    actual, expected = actual.detach(), expected.detach()
    different = find_different(actual, expected)
    if not different.any():
        return Closeness(0.0, 0.0)
    pair = actual[different], expected[different]
    if (pair[0].isnan() | pair[1].isnan()).any():
        return Closeness(math.inf, 0.0)
    distance = (_ordered(pair[0]).double() - _ordered(pair[1]).double()).abs().max().item()
    return Closeness(max(distance, 1.0), 0.0)


def measure_sums(actual: Tensor, expected: Tensor) -> Closeness:
    """Measure float64 results that depend on float64 sums, whose order is free."""
    actual, expected = actual.detach(), expected.detach()
    largest = expected.abs().max().item() if expected.numel() else 0.0
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    ulp = torch.finfo(torch.float64).eps * largest
    return Closeness(error, SUM_TOLERANCE * largest, 0.0, ulp or 1.0)


def assert_same_bits(name: str, actual: Tensor, expected: Tensor) -> None:
    """Check that two tensors have the same shape, dtype and bits, but for the bits of a NaN.

    Raises:
        AssertionError: they differ; the message has the number of elements and the first of them.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}")
    if actual.dtype != expected.dtype:
        raise AssertionError(f"{name}: {actual.dtype} is not {expected.dtype}")
    different = find_different(actual, expected)
    count = int(different.sum())
    if count:
        if actual.itemsize == 1 and actual.is_floating_point():
            actual, expected = actual.view(torch.uint8), expected.view(torch.uint8)
        i = int(different.flatten().nonzero()[0].item())
        pair = actual.flatten()[i].item(), expected.flatten()[i].item()
        raise AssertionError(f"{name}: {count} of {actual.numel()} differ, first at {i}: {pair}")
