"""The interpreter's arithmetic against exact fractions and against torch."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ci.ptxsim import arithmetic
from ci.ptxsim.tests.snippets import apply, same_bits

F32 = {"bits": 24, "lowest": -149}
F64 = {"bits": 53, "lowest": -1074}
BF16 = {"bits": 8, "lowest": -133}


def rounded(value: Fraction, bits: int, lowest: int) -> Fraction:
    """Round to the nearest float of this precision and lowest exponent; do not check overflow."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - bits + 1, lowest)
    return round(value / unit) * unit


def hard_cases(dtype, bits, low, high):
    """Return a, b, c whose products and sums cancel, tie, underflow and overflow."""
    random = np.random.default_rng(0)
    count = 2000

    def numbers(low, high):
        mantissas = random.integers(1 << (bits - 1), 1 << bits, count).astype(np.float64)
        scale = np.ldexp(mantissas, random.integers(low, high, count) - bits)
        return (scale * random.choice([-1.0, 1.0], count)).astype(dtype)

    sparse, other = (
        (1 + np.ldexp(random.integers(0, 8, count).astype(dtype), -unit)).astype(dtype)
        for unit in (bits // 2, bits - bits // 2)
    )
    a, b = numbers(-20, 20), numbers(-20, 20)
    tiny = np.array(np.ldexp(1.0, low - bits + 1), dtype)
    steps = np.ldexp(a * b, -bits) * random.integers(-9, 9, count)
    return [
        (a, b, numbers(-60, 60)),
        (a, b, (-a * b + steps).astype(dtype)),
        (a, b, (-a * b).astype(dtype)),
        # every other product lies in the middle of two floats, and the sum next to it
        (sparse, other, np.ldexp(sparse, -bits)),
        (sparse, other, np.ldexp(sparse, -3 * bits)),
        (sparse, other, np.ldexp(-sparse, -3 * bits)),
        (numbers(low // 2 - 9, low // 2), numbers(low // 2 - 9, low // 2 + 9), tiny * sparse),
        (numbers(low // 2 - 20, low // 2), numbers(low // 2 - 20, low // 2), np.zeros_like(a)),
        (numbers(high - 2, high), numbers(-3, 3), numbers(high - 2, high)),
    ]


@pytest.mark.parametrize(
    ("function", "dtype", "kind", "low", "high"),
    [
        (arithmetic.fma32, np.float32, F32, -126, 128),
        (arithmetic.fma64, np.float64, F64, -1022, 1024),
    ],
)
def test_fma_is_the_exact_result_rounded_once(function, dtype, kind, low, high):
    largest = Fraction(float(np.finfo(dtype).max))
    for a, b, c in hard_cases(dtype, kind["bits"], low, high):
        with np.errstate(all="ignore"):
            result = function(a, b, c)
        for x, y, z, got in zip(a, b, c, result, strict=True):
            if not np.isfinite([x, y, z]).all():
                continue
            exact = rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), **kind)
            if abs(exact) > largest:
                assert np.isinf(got)
                assert (got > 0) == (exact > 0)
            else:
                assert Fraction(float(got)) == exact, (x, y, z)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_of_zeros_infinities_and_nans(dtype):
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], dtype)
    a, b, c = (x.reshape(-1) for x in np.meshgrid(values, values, values))
    with np.errstate(all="ignore"):
        expected = a * b + c  # exact for these
        result = (arithmetic.fma32 if dtype == np.float32 else arithmetic.fma64)(a, b, c)
    np.testing.assert_array_equal(result, expected)
    same_bits(np.signbit(result[expected == 0]), np.signbit(expected[expected == 0]))


def float32_near_bf16():
    """Return float32 values of every upper half with the lower halves around ties."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(np.float32)


def float32_near_f16():
    """Return every float16, the midpoint to the next one, and the neighbours of both."""
    with np.errstate(all="ignore"):
        halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
        middles = halves + (np.roll(halves, -1) - halves) / np.float32(2)
        points = np.concatenate([halves, middles, np.float32([65520, -65520, 1e9, 2.0**-25])])
        return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)])


@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [("bf16", torch.bfloat16, float32_near_bf16()), ("f16", torch.float16, float32_near_f16())],
)
def test_narrow_conversions_are_those_of_torch(kind, dtype, values):
    values = np.concatenate([values, np.zeros(-len(values) % 64, np.float32)]).astype(np.float32)
    expected = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16).copy()
    expected[np.isnan(values)] = 0x7FFF  # a GPU has one NaN
    same_bits(apply(f"cvt.rn.{kind}.f32 %y0, %x0;", values, out="u2"), expected)
    packed = apply(f"cvt.rn.{kind}x2.f32 %y0, %x0, %x1;", values[::2], values[1::2], out="u4")
    same_bits(packed, expected[1::2] | (expected[::2].astype(np.uint32) << 16))


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_widening_conversions_are_those_of_torch(kind, dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype)
    result = apply(f"cvt.f32.{kind} %y0, %x0;", bits, out="f4")
    assert torch.equal(torch.from_numpy(result).nan_to_num(9), expected.float().nan_to_num(9))


def test_bf16_of_float64_is_rounded_once():
    upper = np.arange(0, 0x7F80, 5, dtype=np.uint32) << 16
    middle = (upper | 0x8000).view(np.float32).astype(np.float64)
    # so near the middle that float32 cannot tell them from it
    values = np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    with np.errstate(over="ignore"):
        result = arithmetic.bf16_to_f32(arithmetic.to_bf16(values))
    largest = Fraction(float(arithmetic.bf16_to_f32(np.array([0x7F7F], np.uint16))[0]))
    for value, got in zip(values, result, strict=True):
        exact = rounded(Fraction(value), **BF16)
        assert np.isinf(got) if exact > largest else Fraction(float(got)) == exact


def test_float32_nans_are_the_one_of_a_gpu():
    x = np.full(32, np.float32(np.inf))
    for code in ("sub.rn.f32 %y0, %x0, %x0;", "fma.rn.f32 %y0, %x0, 0f00000000, %x0;"):
        same_bits(apply(code, x, out="f4"), np.full(32, 0x7FFFFFFF, np.uint32).view(np.float32))


ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
EDGES = [0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 128.0, -129.0, 255.5, 32767.7, 65535.9, 2**31 - 0.7]
EDGES += [2.0**31, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63), 2.0**64, 1e30, -1e30, 1e-40, np.inf]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_conversions_to_integers_saturate(rounding, to, source):
    values = np.array([*EDGES, *(-x for x in EDGES), np.nan], f"f{int(source[1:]) // 8}")
    values = np.concatenate([values, np.zeros(-len(values) % 32, values.dtype)])
    limits = np.iinfo(f"{'i' if to[0] == 's' else 'u'}{int(to[1:]) // 8}")
    wide = limits.bits == 64 or source == "f64"
    nan = (limits.min or 1 << (limits.bits - 1)) if wide else 0
    expected = [
        nan
        if np.isnan(x)
        else min(max(int(ROUNDINGS[rounding](x)), limits.min), limits.max)
        if np.isfinite(x)
        else (limits.max if x > 0 else limits.min)
        for x in values
    ]
    size = max(limits.bits // 8, 2)  # the narrowest register
    result = apply(f"cvt.{rounding}.{to}.{source} %y0, %x0;", values, out=f"i{size}")
    assert [int(x) & (2 ** (8 * size) - 1) for x in result] == [
        x & (2 ** (8 * size) - 1) for x in expected
    ]


def test_integers_to_floats():
    values = np.array([0, 1, -1, 2**24 + 1, 2**24 + 3, 2**31 - 1, -(2**31), 2**31 - 65], np.int32)
    values = np.resize(values, 32)
    same_bits(apply("cvt.rn.f32.s32 %y0, %x0;", values, out="f4"), values.astype(np.float32))
    unsigned = values.view(np.uint32)
    same_bits(apply("cvt.rn.f32.u32 %y0, %x0;", values, out="f4"), unsigned.astype(np.float32))
    same_bits(apply("cvt.rn.f64.u32 %y0, %x0;", values, out="f8"), unsigned.astype(np.float64))
    long = np.resize(np.array([2**63 - 1, -(2**63), 2**53 + 1, 2**24 + 1], np.int64), 32)
    same_bits(apply("cvt.rn.f64.s64 %y0, %x0;", long, out="f8"), long.astype(np.float64))
    same_bits(apply("cvt.rn.f32.s64 %y0, %x0;", long, out="f4"), long.astype(np.float32))
    expected = torch.from_numpy(values % 3000).to(torch.float16).numpy()
    same_bits(apply("cvt.rn.f16.s32 %y0, %x0;", values % 3000, out="f2"), expected)


FLOATS = np.array(
    [0.0, -0.0, 1.0, -1.0, 1.5, 3e38, -3e38, 1e-38, 1e-45, np.inf, -np.inf, np.nan], np.float32
)
PAIRS = [np.resize(x, 160) for x in np.meshgrid(FLOATS, FLOATS)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "function"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.divide)],
)
def test_float_operations(name, function, dtype):
    x, y = (array.astype(dtype) for array in PAIRS)
    kind = f"f{8 * x.itemsize}"
    with np.errstate(all="ignore"):
        expected = function(x, y)
    result = apply(f"{name}.rn.{kind} %y0, %x0, %x1;", x, y, out=dtype)
    np.testing.assert_array_equal(result, expected)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(result)[zero], np.signbit(expected)[zero])
    with np.errstate(all="ignore"):
        expected = np.sqrt(x)
    np.testing.assert_array_equal(apply(f"sqrt.rn.{kind} %y0, %x0;", x, out=dtype), expected)


def test_flush_to_zero_takes_subnormals_away():
    x = np.resize(np.array([1e-40, -1e-40, 1.2e-38, 1.0], np.float32), 32)
    y = np.resize(np.array([1.0, 1.0, 0.5, 1e-40], np.float32), 32)
    expected = np.resize(np.array([0.0, -0.0, 0.0, 0.0], np.float32), 32)
    same_bits(apply("mul.rn.ftz.f32 %y0, %x0, %x1;", x, y, out="f4"), expected)
    assert (apply("mul.rn.f32 %y0, %x0, %x1;", x, y, out="f4") != 0).all()


@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes_order_zeros_and_treat_nans_as_asked(name):
    x, y = PAIRS
    choose = min if name == "min" else max

    def expected(a, b, propagate):
        numbers = [value for value in (a, b) if not np.isnan(value)]
        if not numbers or (propagate and len(numbers) == 1):
            return np.uint32(0x7FFFFFFF).view(np.float32)
        return choose(numbers, key=lambda value: (value, not np.signbit(value)))

    for modifier, propagate in (("", False), (".NaN", True)):
        result = apply(f"{name}{modifier}.f32 %y0, %x0, %x1;", x, y, out="f4")
        wanted = [expected(a, b, propagate) for a, b in zip(x, y, strict=True)]
        same_bits(result, np.array(wanted, np.float32))


RELATIONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SET = "setp.{} %p1, %x0, %x1; selp.b32 %y0, 1, 0, %p1;"


@pytest.mark.parametrize("name", RELATIONS)
def test_float_comparisons_with_nans(name):
    x, y = PAIRS
    unordered = np.isnan(x) | np.isnan(y)
    plain = np.array([eval(f"a {RELATIONS[name]} b") for a, b in zip(x, y, strict=True)])
    ordered = apply(SET.format(f"{name}.f32"), x, y, out="i4")
    np.testing.assert_array_equal(ordered, plain & ~unordered)
    either = apply(SET.format(f"{name}u.f32"), x, y, out="i4")
    np.testing.assert_array_equal(either, plain | unordered)
    np.testing.assert_array_equal(apply(SET.format("nan.f32"), x, y, out="i4"), unordered)
    np.testing.assert_array_equal(apply(SET.format("num.f32"), x, y, out="i4"), ~unordered)


def test_packed_and_mixed_precision():
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 64)).astype(np.float32)
    pairs = [row.view(np.uint64) for row in x]
    code = "fma.rn.f32x2 %y0, %x0, %x1, %x2; add.rn.f32x2 %y0, %y0, %x0;"
    result = apply(code, *pairs, out="u8", target="sm_100a").view(np.float32)
    same_bits(result, arithmetic.fma32(*x) + x[0])
    half = torch.from_numpy(x).to(torch.bfloat16)
    bits, wide = half.view(torch.int16).numpy(), half.float().numpy()
    code = "sub.rn.f32.bf16 %y0, %x0, %x1;"
    result = apply(code, bits[0], x[1], out="f4", target="sm_100a")
    same_bits(result, wide[0] - x[1])
    two = bits.view(np.uint32)
    result = apply("fma.rn.bf16x2 %y0, %x0, %x1, %x2;", *two, out="u4").view(np.uint16)
    same_bits(result, arithmetic.to_bf16(arithmetic.fma_to_odd(*wide)))
    result = apply("add.rn.bf16 %y0, %x0, %x1;", bits[0], bits[1], out="u2")
    same_bits(result, (half[0] + half[1]).view(torch.int16).numpy())
    result = apply(
        "setp.gt.bf16x2 %p1|%p2, %x0, %x1; selp.b32 %r1, 1, 0, %p1;"
        "selp.b32 %r2, 2, 0, %p2; or.b32 %y0, %r1, %r2;",
        two[0],
        two[1],
        out="i4",
    )
    greater = (wide[0] > wide[1]).reshape(-1, 2)
    np.testing.assert_array_equal(result, greater[:, 0] + 2 * greater[:, 1])


def test_approximate_functions_are_the_exact_ones_rounded():
    x = np.abs(np.random.default_rng(0).standard_normal(64)).astype(np.float32)
    wide = x.astype(np.float64)
    functions = {"rcp": 1 / wide, "rsqrt": 1 / np.sqrt(wide), "ex2": 2**wide, "lg2": np.log2(wide)}
    for name, expected in functions.items():
        result = apply(f"{name}.approx.ftz.f32 %y0, %x0;", x, out="f4")
        same_bits(result, expected.astype(np.float32))
