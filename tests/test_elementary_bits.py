"""Bits of every torch operation on values, compared with numpy.

The other library is numpy, in the way that leaves it no rounding to get wrong: float32 is computed
in float64 and rounded once, which is the same; of float64 a part is compared with fractions too. A
million values, in parts of every size that begin anywhere, for a library may compute the first and
last elements of a tensor in another way than those between.

Faults tried by hand, each named by its own test: a root that is a bit off for one element in a
thousand; a product with the reciprocal for a division; bits cut off for a rounding to bf16; ``>>``
as of unsigned numbers.
"""

from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from fused_optim.rules.common import sqrt_rn

COUNT = 1 << 20
PARTS = [(start, size) for size in (1, 7, 1025, COUNT) for start in (0, 1)]
FLOATS = {"float32": np.float32, "float64": np.float64}


def floats(dtype, seed):
    """Return values near 1, of all sizes, of any bits, and special ones in random order."""
    generator = np.random.default_rng(seed)
    count = COUNT + 1
    x = generator.standard_normal(count)
    x[count // 2 :] *= 10.0 ** generator.uniform(-30, 30, count - count // 2)
    x = x.astype(dtype)
    size = np.dtype(dtype).itemsize
    anything = generator.integers(0, 256, (count // 4, size), dtype=np.uint8).view(dtype)
    x[-(count // 4) :] = anything[:, 0]
    tiny = np.finfo(dtype).smallest_subnormal
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, tiny, -tiny, np.finfo(dtype).max]
    x[generator.integers(0, count, 4096)] = generator.choice(np.array(special, dtype), 4096)
    return x


def integers(dtype, seed):
    """Return integers over the whole range of a dtype."""
    limits = np.iinfo(dtype)
    generator = np.random.default_rng(seed)
    return generator.integers(limits.min, limits.max, COUNT + 1, dtype=dtype, endpoint=True)


def assert_same(name, actual, expected):
    """Check that bits are equal, but for those of a NaN."""
    actual = actual.numpy()
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} is not {expected.dtype}"
    bits = f"V{actual.itemsize}" if actual.itemsize > 8 else f"u{actual.itemsize}"
    same = actual.view(bits) == expected.view(bits)
    if expected.dtype.kind == "f" and not same.all():
        same |= np.isnan(actual) & np.isnan(expected)
    if not same.all():
        i = int(np.argmin(same))
        pair = actual[i], expected[i]
        raise AssertionError(f"{name}: {np.sum(~same)} differ, the first at {i}: {pair}")


def check(name, torch_function, expected, *arguments):
    """Compare ``torch_function`` on parts of the arguments with ``expected`` on the whole."""
    given = [torch.from_numpy(argument) for argument in arguments]
    for start, size in PARTS:
        part = slice(start, start + size)
        actual = torch_function(*(argument[part] for argument in given))
        assert_same(f"{name}[{start}:{start + size}]", actual, expected[part])


def wide(function):
    """Return ``function`` computed in float64 for float32."""

    def once(*arguments):
        with np.errstate(all="ignore"):
            dtype = arguments[0].dtype
            return function(*(argument.astype(np.float64) for argument in arguments)).astype(dtype)

    return once


def zeros_of_one_sign(function):
    """Return arguments without zeros of unlike sign, of which either may be the maximum."""
    return lambda x, y: function(x + 0.0, y + 0.0)


def same_operator(function):
    """Return an operation that torch and numpy write alike."""
    return function, function


ARITHMETIC = {
    "x + y": same_operator(lambda x, y: x + y),
    "x - y": same_operator(lambda x, y: x - y),
    "x * y": same_operator(lambda x, y: x * y),
    "x / y": same_operator(lambda x, y: x / y),
    "x.add_(y)": (lambda x, y: x.clone().add_(y), lambda x, y: x + y),
    "1.0 - x": same_operator(lambda x, y: 1.0 - x),
    "1.0 + x": same_operator(lambda x, y: 1.0 + x),
    "1.0 / x": same_operator(lambda x, y: 1.0 / x),
    # torch multiplies by the reciprocal, which must be a normal number then
    "2.0 / x": (
        lambda x, y: 2.0 / x.clamp(-1e30, 1e30),
        lambda x, y: 2.0 / np.clip(x, -1e30, 1e30),
    ),
    "x / 2.0**16": same_operator(lambda x, y: x / 2.0**16),
    "x * 0.5": same_operator(lambda x, y: x * 0.5),
    "x * scalar": (lambda x, y: x * torch.tensor(0.75).to(x.dtype), lambda x, y: x * 0.75),
    "sqrt_rn(x)": (lambda x, y: sqrt_rn(x), lambda x, y: np.sqrt(x)),
}
SELECTION = {
    "x.abs()": (lambda x, y: x.abs(), lambda x, y: np.abs(x)),
    "-x": same_operator(lambda x, y: -x),
    "where(x < y, x, y)": (
        lambda x, y: torch.where(x < y, x, y),
        lambda x, y: np.where(x < y, x, y),
    ),
    "maximum(x, y)": (zeros_of_one_sign(torch.maximum), zeros_of_one_sign(np.maximum)),
    "minimum(x, y)": (zeros_of_one_sign(torch.minimum), zeros_of_one_sign(np.minimum)),
    "x.clamp(-1.0, 1.0)": (lambda x, y: x.clamp(-1.0, 1.0), lambda x, y: np.clip(x, -1, 1)),
    "(x > 0).to(x.dtype)": (lambda x, y: (x > 0).to(x.dtype), lambda x, y: (x > 0).astype(x.dtype)),
    "x < y": same_operator(lambda x, y: x < y),
    "x <= y": same_operator(lambda x, y: x <= y),
    "x > y": same_operator(lambda x, y: x > y),
    "x >= y": same_operator(lambda x, y: x >= y),
    "x == y": same_operator(lambda x, y: x == y),
    "x != x": (lambda x, y: x != x, lambda x, y: np.isnan(x)),
    "x.isfinite()": (lambda x, y: x.isfinite(), lambda x, y: np.isfinite(x)),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*ARITHMETIC, *SELECTION])
def test_floats(name, dtype):
    ours, theirs = (ARITHMETIC | SELECTION)[name]
    x, y = (floats(FLOATS[dtype], seed) for seed in (0, 1))
    y[: COUNT // 8] = x[: COUNT // 8]
    if name in ARITHMETIC:
        theirs = wide(theirs)
    with np.errstate(all="ignore"):
        check(name, ours, theirs(x, y), x, y)


def test_float64_against_fractions():
    """Guard against errors of numpy itself: ``float`` of a fraction or decimal rounds once."""
    x, y = (floats(np.float64, seed)[: COUNT // 2 : 257] for seed in (0, 1))
    small, large = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    normal = (small > 1e-100) & (large < 1e100)
    x, y = torch.from_numpy(x[normal]), torch.from_numpy(y[normal])
    assert len(x) > 1000
    result = torch.stack([x, y, x + y, x - y, x * y, x / y, sqrt_rn(x.abs())], dim=1)
    context = Context(prec=80)
    for a, b, *results in result.tolist():
        p, q = Fraction(a), Fraction(b)
        exact = [float(z) for z in (p + q, p - q, p * q, p / q, Decimal(abs(a)).sqrt(context))]
        assert results == exact, (a, b)


def rounded_to_bf16(x):
    """Round float32 to bf16, to nearest even, by integer arithmetic; return float32."""
    bits = x.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, bits.astype(np.uint32).view(np.float32))


CONVERSIONS = {
    "float32 to float64": (lambda x: x.double(), lambda x: x.astype(np.float64)),
    "float32 to bf16": (lambda x: x.to(torch.bfloat16).float(), rounded_to_bf16),
    "float32 into bf16": (
        lambda x: torch.empty_like(x, dtype=torch.bfloat16).copy_(x).float(),
        rounded_to_bf16,
    ),
    "float32 to fp16": (lambda x: x.half(), lambda x: x.astype(np.float16)),
    "fp16 to float32": (lambda x: x.half().float(), lambda x: x.astype(np.float16).astype("f4")),
    "float32 to bits": (lambda x: x.view(torch.int32), lambda x: x.view(np.int32)),
}
CONVERSIONS_64 = {
    "float64 to float32": (lambda x: x.float(), lambda x: x.astype(np.float32)),
    "float64 into float32": (
        lambda x: torch.empty_like(x, dtype=torch.float32).copy_(x),
        lambda x: x.astype(np.float32),
    ),
    # by way of float32: two roundings, always the same
    "float64 to bf16": (
        lambda x: x.to(torch.bfloat16).float(),
        lambda x: rounded_to_bf16(x.astype(np.float32)),
    ),
    "float64 to fp16": (lambda x: x.half(), lambda x: x.astype(np.float32).astype(np.float16)),
    "float64 to int64": (
        lambda x: x.clamp(-1e9, 1e9).nan_to_num().long(),
        lambda x: np.trunc(np.nan_to_num(np.clip(x, -1e9, 1e9))).astype(np.int64),
    ),
}


@pytest.mark.parametrize("name", [*CONVERSIONS, *CONVERSIONS_64])
def test_conversions(name):
    ours, theirs = (CONVERSIONS | CONVERSIONS_64)[name]
    x = floats(np.float32 if name in CONVERSIONS else np.float64, 0)
    with np.errstate(all="ignore"):
        check(name, ours, theirs(x), x)


INT32 = {
    "x + y": same_operator(lambda x, y: x + y),
    "x - y": same_operator(lambda x, y: x - y),
    "x * y": same_operator(lambda x, y: x * y),
    "x & y": same_operator(lambda x, y: x & y),
    "x | y": same_operator(lambda x, y: x | y),
    "x ^ y": same_operator(lambda x, y: x ^ y),
    "x & ~0xFFFF": same_operator(lambda x, y: x & ~0xFFFF),
    "x << 8": same_operator(lambda x, y: x << 8),
    "x << 23": same_operator(lambda x, y: x << 23),
    "x >> 8": same_operator(lambda x, y: x >> 8),
    "x >> 15": same_operator(lambda x, y: x >> 15),
    "x >> 23": same_operator(lambda x, y: x >> 23),
    "x < y": same_operator(lambda x, y: x < y),
    "x >= y": same_operator(lambda x, y: x >= y),
    "x != y": same_operator(lambda x, y: x != y),
    "where": (lambda x, y: torch.where(x > 0, x, y), lambda x, y: np.where(x > 0, x, y)),
    "x.clamp(min=1)": (lambda x, y: x.clamp(min=1), lambda x, y: np.maximum(x, 1)),
    "x.clamp(max=254)": (lambda x, y: x.clamp(max=254), lambda x, y: np.minimum(x, 254)),
    "x to float32": (lambda x, y: (x >> 8).float(), lambda x, y: (x >> 8).astype(np.float32)),
    "x to float64": (lambda x, y: x.double(), lambda x, y: x.astype(np.float64)),
    "x to int64": (lambda x, y: x.long(), lambda x, y: x.astype(np.int64)),
    "x to uint8": (lambda x, y: x.to(torch.uint8), lambda x, y: (x & 255).astype(np.uint8)),
    "x to int8": (lambda x, y: x.to(torch.int8), lambda x, y: x.astype(np.int8)),
    "x to int16": (lambda x, y: x.to(torch.int16), lambda x, y: x.astype(np.int16)),
    "int8 to int32": (lambda x, y: x.to(torch.int8).int(), lambda x, y: (x << 24) >> 24),
    "int16 to int32": (lambda x, y: x.to(torch.int16).int(), lambda x, y: (x << 16) >> 16),
    "uint8 to int32": (lambda x, y: x.to(torch.uint8).int(), lambda x, y: x & 255),
    "bits to float32": (lambda x, y: x.view(torch.float32), lambda x, y: x.view(np.float32)),
}
INT64 = {
    "x + y": same_operator(lambda x, y: x + y),
    "x % 2": (lambda x, y: x % 2, lambda x, y: x & 1),
    "x // 2": (lambda x, y: x // 2, lambda x, y: x >> 1),
    "x >> 32": same_operator(lambda x, y: x >> 32),
    "x == y": same_operator(lambda x, y: x == y),
    "x to int32": (lambda x, y: x.int(), lambda x, y: x.astype(np.int32)),
    "x to float64": (lambda x, y: (x >> 11).double(), lambda x, y: (x >> 11).astype(np.float64)),
}


@pytest.mark.parametrize("name", INT32)
def test_int32(name):
    x, y = (integers(np.int32, seed) for seed in (0, 1))
    ours, theirs = INT32[name]
    check(name, ours, theirs(x, y), x, y)


@pytest.mark.parametrize("name", INT64)
def test_int64(name):
    x, y = (integers(np.int64, seed) for seed in (0, 1))
    y[::2] = x[::2]
    ours, theirs = INT64[name]
    check(name, ours, theirs(x, y), x, y)


def test_what_reduces_or_moves():
    x, y = integers(np.int32, 0)[:COUNT], floats(np.float64, 0)
    blocks = torch.from_numpy(x).view(-1, 64)
    assert_same("amax", blocks.amax(1), x.reshape(-1, 64).max(1))
    repeated = blocks[:, 0].repeat_interleave(64)[: COUNT - 7]
    assert_same("repeat_interleave", repeated, x[::64].repeat(64)[: COUNT - 7])
    padded = pad(torch.from_numpy(x[: COUNT - 7]), (0, -(COUNT - 7) % 64))
    assert_same("pad", padded, np.concatenate([x[: COUNT - 7], np.zeros(7, np.int32)]))
    few = torch.from_numpy(y)
    assert int(torch.count_nonzero(few > 0)) == np.sum(y > 0)
    assert not few.isfinite().all()
