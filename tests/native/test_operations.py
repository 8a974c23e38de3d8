"""Single operations, executed at every level of this machine and compared bit for bit.

Faults tried by hand: bfloat16 rounded half up; float16 without the carry into infinity; a NaN that
becomes infinity; a maximum that does not tell zeros, or keeps a NaN; a sum from left to right;
sitofp for uitofp; a mask that is one element short; a loop that copies masked elements; one element
stored whatever its mask; turns that overlap; loads taken out of a loop that stores.
"""

import math

import numpy as np
import pytest
import torch
from native.kernels import HERE, by_hand, module, run

SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1e-40, 3.4e38, -3e38]
SPECIAL += [65504.0, 65519.9, 65520.0, -65520.0, 6.1e-5, 6e-8, 2.9e-8, -2.9e-8, 3e-8, 0.5, 2.5, 3.5]
TYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}
pytestmark = pytest.mark.parametrize("level", HERE)
N = 64


def elementwise(level, body, result, **operands):
    """Run ``body``, which computes %out from its operands, on blocks of 64 elements."""
    arguments = [f"%{name}_ptr: !tt.ptr<{type_}>" for name, (type_, _) in operands.items()]
    arguments.append(f"%out_ptr: !tt.ptr<{result}>")
    lines = [
        f"%pid = tt.get_program_id x : i32\n%n = arith.constant {N} : i32",
        "%first = arith.muli %pid, %n : i32",
        f"%range = tt.make_range {{end = {N} : i32, start = 0 : i32}} : tensor<{N}xi32>",
        f"%starts = tt.splat %first : i32 -> tensor<{N}xi32>",
        f"%offs = arith.addi %starts, %range : tensor<{N}xi32>",
    ]
    for name, (type_, _) in [*operands.items(), ("out", (result, None))]:
        pointers = f"tensor<{N}x!tt.ptr<{type_}>>"
        lines += [
            f"%{name}_all = tt.splat %{name}_ptr : !tt.ptr<{type_}> -> {pointers}",
            f"%{name}_at = tt.addptr %{name}_all, %offs : {pointers}, tensor<{N}xi32>",
        ]
        if name != "out":
            lines.append(f"%{name} = tt.load %{name}_at : {pointers}")
    lines += [body, f"tt.store %out_at, %out : tensor<{N}x!tt.ptr<{result}>>"]
    kernel = by_hand(module("\n".join(lines), ", ".join(arguments)), level)
    count = len(next(iter(operands.values()))[1])
    assert count % N == 0
    actual = torch.empty(count, dtype=TYPES[result])
    run(kernel, *[values for _, values in operands.values()], actual, programs=count // N)
    return actual


def padded(values, dtype=torch.float32):
    values = torch.tensor(values, dtype=dtype) if isinstance(values, list) else values
    return torch.cat([values, values.new_ones(-len(values) % N)])


def assert_same(ours, theirs):
    """Check that bits are equal, any NaN for a NaN."""
    same = (ours == theirs) & (ours.signbit() == theirs.signbit()) | (ours.isnan() & theirs.isnan())
    wrong = (~same).nonzero().flatten()
    assert not len(wrong), f"{len(wrong)}: {ours[wrong[:5]]}, {theirs[wrong[:5]]} at {wrong[:5]}"


def halves(bits):
    """Return float32 values at, just below and just above the middle of 16-bit neighbours."""
    every = torch.arange(1 << 16, dtype=torch.int64)
    exact = every.to(torch.uint16).view(bits).float()
    other = (every + 1).clamp(max=65535).to(torch.uint16).view(bits).float()
    middle = ((exact.double() + other.double()) / 2).float()
    below, above = (torch.nextafter(middle, middle + s * math.inf) for s in (-1, 1))
    return torch.cat([exact, middle, below, above])


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_to_16_bits(level, name, dtype):
    values = padded(torch.cat([halves(dtype), torch.tensor(SPECIAL), torch.randn(1000) * 1e-6]))
    body = f"%out = arith.truncf %a : tensor<{N}xf32> to tensor<{N}x{name}>"
    assert_same(elementwise(level, body, name, a=("f32", values)), values.to(dtype))


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("wide", ["f32", "f64"])
def test_from_16_bits(level, name, dtype, wide):
    values = torch.arange(1 << 16, dtype=torch.int64).to(torch.uint16).view(dtype)
    body = f"%out = arith.extf %a : tensor<{N}x{name}> to tensor<{N}x{wide}>"
    assert_same(elementwise(level, body, wide, a=(name, values)), values.to(TYPES[wide]))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_a_nan_stays_quiet_with_its_sign_or_is_the_canonical_one(level, name):
    """Guard against NaN bits that differ between levels; the payload may be lost."""
    bits = torch.tensor([0x7F800001, 0x7FC00000, -0x7FFFFF, -1], dtype=torch.int32)
    values = padded(bits.view(torch.float32))
    body = f"%out = arith.truncf %a : tensor<{N}xf32> to tensor<{N}x{name}>"
    result = elementwise(level, body, name, a=("f32", values)).view(torch.int16)[:4]
    expected = [0x7FC0] * 4 if name == "bf16" else [0x7E00, 0x7E00, -0x200, -1]
    assert result.tolist() == expected


def pairs(dtype):
    values = torch.tensor(SPECIAL, dtype=dtype)
    return padded(values.repeat(len(values))), padded(values.repeat_interleave(len(values)))


@pytest.mark.parametrize("name", ["f32", "f64"])
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("arith.maxnumf", np.fmax),
        ("arith.minnumf", np.fmin),
        ("arith.addf", np.add),
        ("arith.mulf", np.multiply),
        ("tt.precise_divf", np.divide),
    ],
)
def test_arithmetic_with_special_values(level, name, operation, expected):
    a, b = pairs(TYPES[name])
    body = f"%out = {operation} %a, %b : tensor<{N}x{name}>"
    with np.errstate(all="ignore"):
        theirs = torch.from_numpy(expected(a.numpy(), b.numpy()))
    if "num" in operation:  # numpy does not say which zero
        zeros = (a == 0) & (b == 0)
        negative = (a.signbit() & b.signbit()) if "max" in operation else a.signbit() | b.signbit()
        theirs[zeros] = torch.where(negative, -0.0, 0.0).to(theirs.dtype)[zeros]
    assert_same(elementwise(level, body, name, a=(name, a), b=(name, b)), theirs)


@pytest.mark.parametrize("operation", ["arith.maxnumf", "arith.minnumf"])
@pytest.mark.parametrize("operands", ["%a, %c", "%c, %a"])
@pytest.mark.parametrize("bound", [1.5, -3.0e38, 0.0, -0.0])
def test_a_bound(level, operation, operands, bound):
    """Guard against lost NaN and signs of zero where one operand is a constant."""
    a = padded(SPECIAL)
    constant = f"%c = arith.constant dense<{bound:e}> : tensor<{N}xf32>"
    result = elementwise(
        level, f"{constant}\n%out = {operation} {operands} : tensor<{N}xf32>", "f32", a=("f32", a)
    )
    larger = "max" in operation
    theirs = (torch.fmax if larger else torch.fmin)(a, torch.tensor(bound))
    both = (a == 0) & (bound == 0)
    sign = (
        a.signbit() & (math.copysign(1, bound) < 0)
        if larger
        else (a.signbit() | (math.copysign(1, bound) < 0))
    )
    assert_same(result, torch.where(both, torch.where(sign, -0.0, 0.0), theirs))


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_the_root_is_that_of_ieee(level, name):
    generator = torch.Generator().manual_seed(0)
    a = torch.cat([torch.tensor(SPECIAL), torch.rand(10_000, generator=generator)]).to(TYPES[name])
    a = padded(a)
    body = f"%out = tt.precise_sqrt %a : tensor<{N}x{name}>"
    with np.errstate(all="ignore"):
        theirs = torch.from_numpy(np.sqrt(a.numpy()))
    assert_same(elementwise(level, body, name, a=(name, a)), theirs)


@pytest.mark.parametrize("signed", [True, False])
def test_to_integers_the_nearest_that_fits(level, signed):
    a = padded([*SPECIAL, 1e30, -1e30, 2147483647.0, -2147483648.0, 4294967040.0, 3e9])
    operation = "arith.fptosi" if signed else "arith.fptoui"
    low, high = (-(1 << 31), (1 << 31) - 1) if signed else (0, (1 << 32) - 1)
    expected = [0 if math.isnan(x) else int(min(max(x, low), high)) for x in a.tolist()]
    body = f"%out = {operation} %a : tensor<{N}xf32> to tensor<{N}xi32>"
    result = elementwise(level, body, "i32", a=("f32", a)).tolist()
    assert [x % (1 << 32) for x in result] == [x % (1 << 32) for x in expected]


def test_from_unsigned(level):
    a = padded([0, 1, -1, 1 << 31 - 1, -(1 << 31), 16777217], torch.int32)
    body = f"%out = arith.uitofp %a : tensor<{N}xi32> to tensor<{N}xf32>"
    expected = (a.long() % (1 << 32)).float()
    assert_same(elementwise(level, body, "f32", a=("i32", a)), expected)


INTEGERS = {
    "arith.shrsi": lambda a, b: a >> (b & 31),
    "arith.shrui": lambda a, b: (a & 0xFFFFFFFF) >> (b & 31),
    "arith.shli": lambda a, b: a << (b & 31),
    "arith.maxsi": torch.maximum,
    "arith.minsi": torch.minimum,
    "arith.xori": torch.bitwise_xor,
    "arith.muli": torch.mul,
    "arith.divsi": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "arith.remsi": torch.fmod,
}


@pytest.mark.parametrize("operation", INTEGERS)
def test_integers(level, operation):
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-(1 << 31), 1 << 31, (512,), generator=generator)
    b = torch.randint(1, 32, (512,), generator=generator)
    body = f"%out = {operation} %a, %b : tensor<{N}xi32>"
    result = elementwise(level, body, "i32", a=("i32", a.int()), b=("i32", b.int()))
    assert torch.equal(result, INTEGERS[operation](a, b).int())


def summed(level, values, rows):
    """Return the sums of rows of a block, formed by ``tt.reduce``."""
    count = len(values)
    body = f"""
    %r = tt.make_range {{end = {count} : i32, start = 0 : i32}} : tensor<{count}xi32>
    %p = tt.splat %a : !tt.ptr<f32> -> tensor<{count}x!tt.ptr<f32>>
    %q = tt.addptr %p, %r : tensor<{count}x!tt.ptr<f32>>, tensor<{count}xi32>
    %v = tt.load %q : tensor<{count}x!tt.ptr<f32>>
    %w = tt.reshape %v : tensor<{count}xf32> -> tensor<{rows}x{count // rows}xf32>
    %s = "tt.reduce"(%w) <{{axis = 1 : i32}}> ({{
    ^bb0(%x: f32, %y: f32):
      %z = arith.addf %x, %y : f32
      tt.reduce.return %z : f32
    }}) : (tensor<{rows}x{count // rows}xf32>) -> tensor<{rows}xf32>
    %t = tt.make_range {{end = {rows} : i32, start = 0 : i32}} : tensor<{rows}xi32>
    %o = tt.splat %b : !tt.ptr<f32> -> tensor<{rows}x!tt.ptr<f32>>
    %u = tt.addptr %o, %t : tensor<{rows}x!tt.ptr<f32>>, tensor<{rows}xi32>
    tt.store %u, %s : tensor<{rows}x!tt.ptr<f32>>"""
    result = torch.empty(rows)
    run(by_hand(module(body, "%a: !tt.ptr<f32>, %b: !tt.ptr<f32>"), level), values, result)
    return result


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_the_order_of_a_sum(level, rows):
    """Guard against another order than halves added to halves, which the size fixes."""
    values = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 1e3
    tree = values.view(rows, -1)
    while tree.shape[1] > 1:
        half = tree.shape[1] // 2
        tree = tree[:, :half] + tree[:, half:]
    assert torch.equal(summed(level, values, rows), tree.flatten())


GATHER = """
    %r = tt.make_range {{end = 16 : i32, start = 0 : i32}} : tensor<16xi32>
    %two = arith.constant dense<2> : tensor<16xi32>
    %twice = arith.muli %r, %two : tensor<16xi32>
    %n = tt.splat %count : i32 -> tensor<16xi32>
    %one = arith.constant dense<1> : tensor<16xi32>
    %odd = arith.andi %r, %one : tensor<16xi32>
    %is_odd = arith.cmpi {odd}, %odd, %one : tensor<16xi32>
    %low = arith.cmpi slt, %r, %n : tensor<16xi32>
    %mask = arith.andi %low, %is_odd : tensor<16xi1>
    %p = tt.splat %a : !tt.ptr<{t}> -> tensor<16x!tt.ptr<{t}>>
    %q = tt.addptr %p, %{index} : tensor<16x!tt.ptr<{t}>>, tensor<16xi32>
    %other = arith.constant dense<{other}> : tensor<16x{t}>
    %v = tt.load %q, %{mask}, %other : tensor<16x!tt.ptr<{t}>>
    %o = tt.splat %b : !tt.ptr<{t}> -> tensor<16x!tt.ptr<{t}>>
    %u = tt.addptr %o, %{index} : tensor<16x!tt.ptr<{t}>>, tensor<16xi32>
    tt.store %u, %v, %{mask} : tensor<16x!tt.ptr<{t}>>
    %w = tt.splat %d : !tt.ptr<{t}> -> tensor<16x!tt.ptr<{t}>>
    %x = tt.addptr %w, %r : tensor<16x!tt.ptr<{t}>>, tensor<16xi32>
    tt.store %x, %v : tensor<16x!tt.ptr<{t}>>"""


@pytest.mark.parametrize("name", ["i8", "i16", "i32", "i64", "f64"])
@pytest.mark.parametrize("index", ["r", "twice"])
@pytest.mark.parametrize("odd", ["eq", "sle", ""])
def test_masks(level, name, index, odd):
    """Guard against masked elements that are loaded or stored, for every width and mask.

    What is loaded is stored where it came from, and all of it, with what stands for masked
    elements, elsewhere.
    """
    other = "7.0" if name == "f64" else "7"
    mask = "mask" if odd else "low"
    body = GATHER.format(t=name, index=index, odd=odd or "eq", other=other, mask=mask)
    types = f"!tt.ptr<{name}>"
    arguments = f"%a: {types}, %b: {types}, %d: {types}, %count: i32"
    dtype = TYPES[name]
    source, i = torch.arange(10, 42).to(dtype), torch.arange(16)
    positions = i * (2 if index == "twice" else 1)
    kernel = by_hand(module(body, arguments), level)
    for count in (0, 1, 7, 16, 99, -5):
        stored, seen = torch.zeros(32, dtype=dtype), torch.zeros(16, dtype=dtype)
        run(kernel, source, stored, seen, count)
        live = (i < count) & ((i % 2 == 1) | (odd != "eq"))
        expected = torch.zeros(32, dtype=dtype)
        expected[positions[live]] = source[positions[live]]
        assert torch.equal(stored, expected)
        assert torch.equal(seen, torch.where(live, source[positions], torch.tensor(7).to(dtype)))


@pytest.mark.parametrize("live", [True, False])
def test_a_mask_of_one_element(level, live):
    """Guard against scales, which have one element a block, stored past their end."""
    body = """
    %zero = arith.constant 0 : i32
    %is = arith.cmpi sgt, %count, %zero : i32
    %mask = tt.splat %is : i1 -> tensor<1xi1>
    %p = tt.splat %a : !tt.ptr<i8> -> tensor<1x!tt.ptr<i8>>
    %q = tt.splat %b : !tt.ptr<i8> -> tensor<1x!tt.ptr<i8>>
    %seven = arith.constant dense<7> : tensor<1xi8>
    %v = tt.load %p, %mask, %seven : tensor<1x!tt.ptr<i8>>
    tt.store %p, %seven, %mask : tensor<1x!tt.ptr<i8>>
    tt.store %q, %v : tensor<1x!tt.ptr<i8>>"""
    a, b = torch.full((1,), 3, dtype=torch.int8), torch.zeros(1, dtype=torch.int8)
    kernel = by_hand(module(body, "%a: !tt.ptr<i8>, %b: !tt.ptr<i8>, %count: i32"), level)
    run(kernel, a, b, int(live))
    assert (a.item(), b.item()) == ((7, 3) if live else (3, 7))


def test_loops_and_branches(level):
    """Guard against wrong programs: three count in a loop, in turns of two."""
    body = """
    %pid = tt.get_program_id x : i32
    %grid = tt.get_num_programs x : i32
    %zero = arith.constant 0 : i32
    %one = arith.constant 1 : i32
    %ten = arith.constant 10 : i32
    %sum = scf.for %i = %zero to %ten step %one iter_args(%s = %pid) -> (i32)  : i32 {
      %odd = arith.andi %i, %one : i32
      %is = arith.cmpi eq, %odd, %one : i32
      %t = scf.if %is -> (i32) {
        %u = arith.addi %s, %i : i32
        scf.yield %u : i32
      } else {
        scf.yield %s : i32
      }
      scf.yield %t : i32
    }
    %r:2 = scf.while (%x = %sum, %y = %zero) : (i32, i32) -> (i32, i32) {
      %more = arith.cmpi sgt, %x, %ten : i32
      scf.condition(%more) %y, %x : i32, i32
    } do {
    ^bb0(%y: i32, %x: i32):
      %x1 = arith.subi %x, %ten : i32
      %y1 = arith.addi %y, %one : i32
      scf.yield %x1, %y1 : i32, i32
    }
    %hundred = arith.constant 100 : i32
    %h = arith.muli %r#0, %hundred : i32
    %g = arith.addi %h, %r#1 : i32
    %f = arith.addi %g, %grid : i32
    %at = tt.addptr %out, %pid : !tt.ptr<i32>, i32
    tt.store %at, %f : !tt.ptr<i32>"""
    result = torch.zeros(3, dtype=torch.int32)
    run(by_hand(module(body, "%out: !tt.ptr<i32>"), level), result, programs=3, grain=2)
    # pid + 25, divided by 10 with a rest of 1 to 10, and 3 programs
    assert result.tolist() == [205 + 3, 206 + 3, 207 + 3]


def test_what_a_loop_stores_it_loads_again(level):
    """Guard against loads hoisted out of a loop that stores through their argument."""
    body = """
    %zero = arith.constant 0 : i32
    %one = arith.constant 1 : i32
    %ten = arith.constant 10 : i32
    %at = tt.addptr %out, %one : !tt.ptr<i32>, i32
    scf.for %i = %zero to %ten step %one  : i32 {
      %old = tt.load %at : !tt.ptr<i32>
      %new = arith.addi %old, %one : i32
      tt.store %at, %new : !tt.ptr<i32>
    }"""
    result = torch.zeros(2, dtype=torch.int32)
    run(by_hand(module(body, "%out: !tt.ptr<i32>"), level), result)
    assert result.tolist() == [0, 10]


@pytest.mark.parametrize("grain", [1, 2, 5, 64])
def test_every_program_runs_once(level, grain):
    body = """
    %pid = tt.get_program_id x : i32
    %one = arith.constant 1 : i32
    %at = tt.addptr %out, %pid : !tt.ptr<i32>, i32
    %old = tt.load %at : !tt.ptr<i32>
    %new = arith.addi %old, %one : i32
    tt.store %at, %new : !tt.ptr<i32>"""
    result = torch.zeros(64, dtype=torch.int32)
    run(by_hand(module(body, "%out: !tt.ptr<i32>"), level), result, programs=61, grain=grain)
    assert result.tolist() == [1] * 61 + [0] * 3


def test_arguments_of_every_type(level):
    body = """
    %a1 = arith.sitofp %a : i32 to f64
    %b1 = arith.sitofp %b : i64 to f64
    %c1 = arith.extf %c : f32 to f64
    %x = arith.addf %a1, %b1 : f64
    %y = arith.addf %x, %c1 : f64
    %z = arith.addf %y, %d : f64
    tt.store %out, %z : !tt.ptr<f64>"""
    arguments = "%a: i32, %b: i64, %c: f32, %d: f64, %out: !tt.ptr<f64>"
    floats = np.array([0.5], np.float32).view(np.int32)[0], np.array([0.25]).view(np.int64)[0]
    result = torch.zeros(1, dtype=torch.float64)
    run(by_hand(module(body, arguments), level), -3, 1 << 40, *map(int, floats), result)
    assert result.item() == -3 + 2.0**40 + 0.75
