"""Integer and bit instructions of the interpreter against plain Python integers."""

import numpy as np
import pytest

from ci.ptxsim.tests.snippets import apply, integers, same_bits


def numbers(kind, values):
    """Return the values as Python integers of this PTX type."""
    return values.view(f"{'i' if kind[0] == 's' else 'u'}{values.itemsize}").tolist()


def wrapped(results, bits):
    """Convert Python integers to bit patterns."""
    low = [value & ((1 << bits) - 1) for value in results]
    return np.array(low, np.uint64).astype(f"u{bits // 8}")


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": min,
    "max": max,
    "div": truncated,
    "rem": lambda a, b: a - truncated(a, b) * b,
}
KINDS = ["s16", "u16", "s32", "u32", "s64", "u64"]


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_wraps_around(kind):
    bits = int(kind[1:])
    x, y = integers(bits), np.roll(np.sort(integers(bits)), 17)
    divisor = np.where(y == 0, 7, y).astype(y.dtype)
    for name, function in BINARY.items():
        b = divisor if name in ("div", "rem") else y
        pairs = zip(numbers(kind, x), numbers(kind, b), strict=True)
        expected = [function(*pair) for pair in pairs]
        result = apply(f"{name}.{kind} %y0, %x0, %x1;", x, b, out=x.dtype)
        same_bits(result, wrapped(expected, bits))


@pytest.mark.parametrize("kind", ["s16", "u16"])
def test_halves_of_a_register(kind):
    x, y = integers(32), np.roll(np.sort(integers(32)), 17)
    halves = [numbers(kind, value.view(np.uint16)) for value in (x, y)]
    for name in ("add", "min", "max"):
        expected = [BINARY[name](a, b) for a, b in zip(*halves, strict=True)]
        result = apply(f"{name}.{kind}x2 %y0, %x0, %x1;", x, y, out=x.dtype)
        same_bits(result.view(np.uint16), wrapped(expected, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_products(kind):
    bits = int(kind[1:])
    x, y = integers(bits), np.roll(integers(bits), 17)
    exact = [a * b for a, b in zip(numbers(kind, x), numbers(kind, y), strict=True)]
    same_bits(apply(f"mul.lo.{kind} %y0, %x0, %x1;", x, y, out=x.dtype), wrapped(exact, bits))
    high = wrapped([value >> bits for value in exact], bits)
    same_bits(apply(f"mul.hi.{kind} %y0, %x0, %x1;", x, y, out=x.dtype), high)
    added = wrapped([value + z for value, z in zip(exact, numbers(kind, x), strict=True)], bits)
    same_bits(apply(f"mad.lo.{kind} %y0, %x0, %x1, %x0;", x, y, out=x.dtype), added)
    if bits < 64:
        wide = wrapped(exact, 2 * bits)
        same_bits(apply(f"mul.wide.{kind} %y0, %x0, %x1;", x, y, out=f"u{bits // 4}"), wide)
        code = f"mad.wide.{kind} %y0, %x0, %x1, %x2;"
        result = apply(code, x, y, wide, out=f"u{bits // 4}")
        same_bits(result, wrapped([2 * value for value in exact], 2 * bits))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_past_the_width(bits):
    x = integers(bits)
    amounts = [0, 1, bits - 1, bits, bits + 1, 65536, 65537, 2**32 - 1]
    amount = np.resize(np.array(amounts, np.uint32), 256)
    for kind in (f"s{bits}", f"u{bits}"):
        shifted = [a >> min(s, 99) for a, s in zip(numbers(kind, x), amount.tolist(), strict=True)]
        result = apply(f"shr.{kind} %y0, %x0, %x1;", x, amount, out=x.dtype)
        same_bits(result, wrapped(shifted, bits))
    shifted = [a << min(s, 99) for a, s in zip(x.tolist(), amount.tolist(), strict=True)]
    same_bits(apply(f"shl.b{bits} %y0, %x0, %x1;", x, amount, out=x.dtype), wrapped(shifted, bits))


def test_funnel_shifts():
    low, high = integers(32), np.roll(integers(32), 9)
    amount = np.resize(np.array([0, 1, 13, 31, 32, 33, 64, 1000], np.uint32), 256)
    cases = list(zip(low.tolist(), high.tolist(), amount.tolist(), strict=True))
    for mode, limit in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        right = [(((b << 32) | a) >> limit(n)) for a, b, n in cases]
        result = apply(f"shf.r.{mode}.b32 %y0, %x0, %x1, %x2;", low, high, amount, out="u4")
        same_bits(result, wrapped(right, 32))
        left = [(((b << 32) | a) << limit(n)) >> 32 for a, b, n in cases]
        result = apply(f"shf.l.{mode}.b32 %y0, %x0, %x1, %x2;", low, high, amount, out="u4")
        same_bits(result, wrapped(left, 32))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counts_and_fields(bits):
    x, y = integers(bits), np.roll(integers(bits), 5)
    ones = [value.bit_count() for value in x.tolist()]
    same_bits(apply(f"popc.b{bits} %y0, %x0;", x, out="u4"), wrapped(ones, 32))
    zeros = [bits - value.bit_length() for value in x.tolist()]
    same_bits(apply(f"clz.b{bits} %y0, %x0;", x, out="u4"), wrapped(zeros, 32))
    position = np.resize(np.array([0, 3, 8, bits - 1, bits, 255, 256], np.uint32), 256)
    length = np.resize(np.array([8, 0, 1, bits, bits - 1, 255, 13, 40, 5], np.uint32), 256)
    where = [(p & 255, n & 255) for p, n in zip(position.tolist(), length.tolist(), strict=True)]
    for kind in (f"u{bits}", f"s{bits}"):
        fields = [field(a, bits, kind, *at) for a, at in zip(x.tolist(), where, strict=True)]
        result = apply(f"bfe.{kind} %y0, %x0, %x1, %x2;", x, position, length, out=x.dtype)
        same_bits(result, wrapped(fields, bits))
    inserted = [
        inserted_field(a, b, bits, *at)
        for a, b, at in zip(x.tolist(), y.tolist(), where, strict=True)
    ]
    code = f"bfi.b{bits} %y0, %x0, %x1, %x2, %x3;"
    same_bits(apply(code, x, y, position, length, out=x.dtype), wrapped(inserted, bits))


def field(value, bits, kind, position, length):
    """Extract a bit field bit by bit, as the PTX manual defines bfe."""
    top = min(position + length - 1, bits - 1)
    sign = 0 if kind[0] == "u" or length == 0 else (value >> top) & 1
    taken = [
        (value >> (position + i)) & 1 if i < length and position + i < bits else sign
        for i in range(bits)
    ]
    return sum(bit << i for i, bit in enumerate(taken))


def inserted_field(value, into, bits, position, length):
    """Insert a bit field bit by bit, as the PTX manual defines bfi."""
    for i in range(min(length, max(bits - position, 0))):
        into &= ~(1 << (position + i))
        into |= ((value >> i) & 1) << (position + i)
    return into


def test_byte_permutations():
    x, y, selector = integers(32), np.roll(integers(32), 5), integers(32)

    def permuted(a, b, s):
        data = (a | b << 32).to_bytes(8, "little")
        chosen = [(s >> 4 * i) & 15 for i in range(4)]
        return bytes((255 if data[c & 7] > 127 else 0) if c & 8 else data[c] for c in chosen)

    cases = zip(x.tolist(), y.tolist(), selector.tolist(), strict=True)
    expected = [int.from_bytes(permuted(*case), "little") for case in cases]
    result = apply("prmt.b32 %y0, %x0, %x1, %x2;", x, y, selector, out="u4")
    same_bits(result, wrapped(expected, 32))


@pytest.mark.parametrize("table", [0x00, 0x1B, 0x96, 0xCA, 0xE8, 0xFF])
def test_logic_of_three(table):
    x, y, z = integers(32), np.roll(integers(32), 5), np.roll(integers(32), 11)
    # the manual's way to form a table: apply the function to these constants
    terms = [(0xF0, 0xCC, 0xAA, 1 << i) for i in range(8)]
    expected = np.zeros(256, np.uint32)
    for a, b, c, bit in terms:
        if table & bit:
            expected |= (x if a & bit else ~x) & (y if b & bit else ~y) & (z if c & bit else ~z)
    same_bits(apply(f"lop3.b32 %y0, %x0, %x1, %x2, {table};", x, y, z, out="u4"), expected)


def test_narrow_integers_are_extended():
    x = integers(32)
    signed, low = x.view(np.int32), x.astype(np.uint8)
    code = "cvt.s8.s32 %h1, %x0; cvt.s32.s16 %y0, %h1;"
    same_bits(apply(code, x, out="i4"), low.view(np.int8).astype(np.int32))
    same_bits(apply("cvt.u16.u32 %h1, %x0; cvt.u32.u16 %y0, %h1;", x, out="u4"), x & 0xFFFF)
    same_bits(apply("cvt.s64.s32 %y0, %x0;", x, out="i8"), signed.astype(np.int64))
    same_bits(apply("cvt.u64.u32 %y0, %x0;", x, out="u8"), x.astype(np.uint64))
    same_bits(
        apply("cvt.s16.s8 %h1, %x0; cvt.s32.s16 %y0, %h1;", low, out="i4"),
        low.view(np.int8).astype(np.int32),
    )
    code = "cvt.u32.u64 %r1, %at_x0; ld.global.s8 %y0, [%at_x0];"
    same_bits(apply(code, low, out="i4"), low.view(np.int8).astype(np.int32))
    same_bits(apply("ld.global.u8 %y0, [%at_x0];", low, out="u4"), low.astype(np.uint32))


def test_packing_and_unpacking():
    x, y = integers(32), np.roll(integers(32), 5)
    same_bits(apply("mov.b64 %y0, {%x0, %x1};", x, y, out="u8"), x | y.astype(np.uint64) << 32)
    code = "mov.b32 {%h1, %h2}, %x0; mov.b32 %y0, {%h2, %h1};"
    same_bits(apply(code, x, out="u4"), (x >> 16) | (x << 16))
    same_bits(apply("mov.b32 {_, %y0}, %x0;", x, out="u2"), (x >> 16).astype(np.uint16))


def test_integer_comparisons():
    x, y = integers(32), np.roll(np.sort(integers(32)), 3)
    for kind in ("s32", "u32"):
        a, b = (np.array(numbers(kind, array)) for array in (x, y))
        relations = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b}
        relations |= {"gt": a > b, "ge": a >= b}
        if kind == "u32":
            relations |= {"lo": a < b, "ls": a <= b, "hi": a > b, "hs": a >= b}
        for name, expected in relations.items():
            code = f"setp.{name}.{kind} %p1, %x0, %x1; selp.b32 %y0, 1, 0, %p1;"
            np.testing.assert_array_equal(apply(code, x, y, out="i4"), expected)
    code = "setp.gt.u32 %p1, %x0, 9; setp.lt.and.s32 %p2, %x0, %x1, !%p1; selp.b32 %y0, 1, 0, %p2;"
    expected = ~(x > 9) & (x.view(np.int32) < y.view(np.int32))
    np.testing.assert_array_equal(apply(code, x, y, out="i4"), expected)


def test_predicates():
    x = np.arange(32, dtype=np.int32)
    code = """
    setp.lt.s32 %p1, %x0, 10; setp.gt.s32 %p2, %x0, 5; mov.pred %p3, -1;
    and.pred %p4, %p1, %p2; xor.pred %p4, %p4, %p3; not.pred %p4, %p4; or.pred %p4, %p4, %p0;
    mov.b32 %y0, 0;
    @%p4 mov.b32 %y0, 1;
    @!%p1 add.s32 %y0, %y0, 2;
    """
    expected = np.where((x < 10) & (x > 5), 1, 0) + np.where(x < 10, 0, 2)
    np.testing.assert_array_equal(apply("setp.ne.b32 %p0, 0, 0;" + code, x, out="i4"), expected)
