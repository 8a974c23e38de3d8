"""Arithmetic that numpy lacks: fused multiply-add, bf16, the GPU's NaN, and more.

All results are those that the PTX manual defines, bit for bit.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

Array = np.ndarray

_F16_NAN = np.uint16(0x7FFF)
_F32_NAN = np.uint32(0x7FFFFFFF)
_F32_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


def canonical_nan(x: Array) -> Array:
    """Replace every NaN of a float32 or float16 array by the one NaN that a GPU computes.

    Its bits matter: rounding 0x7fffffff up to its upper half, as some codecs do, gives minus zero.
    """
    # the maximum is NaN if any element is: twice as fast as a test of each element
    if not np.isnan(np.max(x)):
        return x
    bits = x.view(np.uint16 if x.itemsize == 2 else np.uint32)
    return np.where(np.isnan(x), _F16_NAN if x.itemsize == 2 else _F32_NAN, bits).view(x.dtype)


def flush_subnormal(x: Array) -> Array:
    """Replace float32 subnormals by zeros of the same sign, as the modifier ``.ftz`` does."""
    return np.where(np.abs(x) < _F32_SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its exact error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def add_to_odd(a: Array, b: Array) -> Array:
    """Add in float64 and round to odd, so that a second rounding gives the correct result.

    Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved
    algorithms using rounding to odd".
    """
    total, error = _two_sum(a, b)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    inexact = np.isfinite(total) & (error != 0) & even
    if not inexact.any():
        return total
    return np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total)


def fma_to_odd(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c in float64, rounded to odd, for factors no wider than float32."""
    return add_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c in float32 with one rounding."""
    return fma_to_odd(a, b, c).astype(np.float32)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c in float64 with one rounding."""
    a, b, c = np.broadcast_arrays(a, b, c)
    product = a * b
    high, low = _two_product(a, b, product)
    total, rest = _two_sum(c, low)
    upper, lower = _two_sum(high, total)
    result = upper + add_to_odd(rest, lower)
    # with a zero product the terms above are exact, but may have lost the sign of a zero
    result = np.where((product == 0) | ~np.isfinite(product + c), product + c, result)
    extreme = _out_of_range(a, b, c)
    for index in zip(*np.nonzero(extreme), strict=True):
        result[index] = _exact_fma(float(a[index]), float(b[index]), float(c[index]))
    return result


def _two_product(a: Array, b: Array, product: Array) -> tuple[Array, Array]:
    """Return the rounded product and its exact error (Dekker, Veltkamp)."""
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _split(x: Array) -> tuple[Array, Array]:
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


def _out_of_range(a: Array, b: Array, c: Array) -> Array:
    """Return True where fma64 may overflow or lose the last bits of the product."""
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.abs(c))
    product = np.abs(a * b)
    small = (product < 2.0**-900) & (a != 0) & (b != 0)
    return finite & ((size > 2.0**990) | (product > 2.0**990) | small)


def _exact_fma(a: float, b: float, c: float) -> float:
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total == 0:
        return a * b + c if a == 0 or b == 0 else 0.0
    try:
        return float(total)
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")


def bf16_to_f32(bits: Array) -> Array:
    """Return the float32 values of bf16 bit patterns."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Array) -> Array:
    """Round float32 or float64 values once to bf16 bit patterns, ties to even."""
    if x.dtype == np.float64:
        x = _to_f32_odd(x)
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    # infinity is a multiple of 2 ** 16, and only NaNs can wrap around
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), _F16_NAN, rounded)


def _to_f32_odd(x: Array) -> Array:
    """Round float64 values to odd in float32, so that a second rounding is correct."""
    near = x.astype(np.float32)
    even = (near.view(np.uint32) & np.uint32(1)) == 0
    inexact = (near != x) & ~np.isnan(x) & even
    odd = np.nextafter(near, np.where(near < x, np.inf, -np.inf).astype(np.float32))
    return np.where(inexact, odd, near)


def to_f16(x: Array) -> Array:
    """Round float32 or float64 values once to float16, ties to even."""
    return canonical_nan(x.astype(np.float16))


def extreme(name: str, nan: bool) -> Callable[[Array, Array], Array]:
    """Return the function "min" or "max" of two numbers, where -0 is less than +0.

    Args:
        name: "min" or "max".
        nan: True if one NaN operand makes the result NaN; else the result is the other operand.
    """
    choose = {
        ("min", False): np.fmin,
        ("max", False): np.fmax,
        ("min", True): np.minimum,
        ("max", True): np.maximum,
    }[name, nan]
    join = np.bitwise_or if name == "min" else np.bitwise_and

    def function(a: Array, b: Array) -> Array:
        result, zero = choose(a, b), (a == 0) & (b == 0)
        if not zero.any():
            return result
        unsigned = np.dtype(f"u{a.itemsize}")
        return np.where(zero, join(a.view(unsigned), b.view(unsigned)).view(a.dtype), result)

    return function


def to_integer(x: Array, dtype: np.dtype, source_bits: int) -> Array:
    """Convert integral float values to integers that hold the nearest value they can.

    A NaN becomes 0, but the integer's top bit if either side has 64 bits.
    """
    limits = np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max) + (1 if dtype.itemsize < 8 else 0)
    wide = dtype.itemsize == 8 or source_bits == 64
    nan = dtype.type(0)
    if wide:
        nan = dtype.type(limits.min if limits.min else 1 << (dtype.itemsize * 8 - 1))
    fits = (x >= low) & (x < high)
    result = np.where(fits, x, 0).astype(dtype)
    result = np.where(x >= high, dtype.type(limits.max), result)
    result = np.where(x < low, dtype.type(limits.min), result)
    return np.where(np.isnan(x), nan, result)


def multiply_high(a: Array, b: Array) -> Array:
    """Return the upper half of the product of two integers of one type."""
    bits = a.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    high = _multiply_high_u64(a.view(np.uint64), b.view(np.uint64)).view(a.dtype)
    if a.dtype.kind == "u":
        return high
    return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


def _multiply_high_u64(a: Array, b: Array) -> Array:
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_high, a_low, b_high, b_low = a >> half, a & mask, b >> half, b & mask
    cross = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (cross & mask)
    return a_high * b_high + (cross >> half) + (other >> half)


def divide(a: Array, b: Array) -> Array:
    """Divide integers towards zero; divisors must not be zero."""
    quotient, remainder = np.floor_divide(a, b), np.remainder(a, b)
    return quotient + ((remainder != 0) & ((a < 0) != (b < 0))).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    """Return the remainder of integer division towards zero, with the sign of the dividend."""
    return np.fmod(a, b)


def leading_zeros(x: Array) -> Array:
    """Return the number of zero bits above the highest one bit, uint32."""
    bits = x.itemsize * 8
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < bits:
            x = x | (x >> x.dtype.type(shift))
    return np.uint32(bits) - np.bitwise_count(x).astype(np.uint32)
