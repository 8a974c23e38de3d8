"""Cooperation of threads in the interpreter: warps, barriers, shared and global memory."""

import numpy as np
import pytest

from ci.ptxsim.tests.snippets import apply, integers, same_bits


@pytest.mark.parametrize(
    ("kind", "amount", "limits", "source"),
    [
        ("bfly", 16, 31, lambda i: i ^ 16),
        ("bfly", 1, 31, lambda i: i ^ 1),
        ("up", 3, 0, lambda i: i - 3 if i >= 3 else i),
        ("down", 5, 31, lambda i: i + 5 if i + 5 < 32 else i),
        ("idx", 7, 31, lambda i: 7),
        # segments of 8 lanes
        ("idx", 2, 0x181F, lambda i: i // 8 * 8 + 2),
        ("down", 5, 0x181F, lambda i: i + 5 if i % 8 + 5 < 8 else i),
    ],
)
def test_shuffles(kind, amount, limits, source):
    x = integers(32, 128)
    code = f"shfl.sync.{kind}.b32 %y0|%p1, %x0, {amount}, {limits}, -1; selp.b32 %y1, 1, 0, %p1;"
    result, inside = apply(code, x, out=("u4", "i4"), threads=64)
    lanes = np.array([source(i) for i in range(32)])
    same_bits(result.reshape(-1, 32), x.reshape(-1, 32)[:, lanes])
    moved = np.resize(lanes != np.arange(32), 128)
    np.testing.assert_array_equal(inside[moved], 1)


def test_reductions_over_a_warp():
    x = integers(32, 128)
    lanes, signed = x.reshape(-1, 32), x.view(np.int32).reshape(-1, 32)
    expected = {
        "add.s32": signed.sum(axis=1, dtype=np.int32),
        "max.s32": signed.max(axis=1),
        "min.u32": lanes.min(axis=1),
        "or.b32": np.bitwise_or.reduce(lanes, axis=1),
        "xor.b32": np.bitwise_xor.reduce(lanes, axis=1),
    }
    for name, value in expected.items():
        result = apply(f"redux.sync.{name} %y0, %x0, -1;", x, out="u4")
        same_bits(result, np.repeat(value.view(np.uint32), 32))
    y = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    y[3] = np.nan
    code = "redux.sync.max.f32 %y0, %x0, -1; redux.sync.max.abs.NaN.f32 %y1, %x0, -1;"
    plain, absolute = apply(code, y, out=("f4", "f4"), target="sm_100a")
    halves = y.reshape(2, 32)
    same_bits(plain, np.repeat(np.fmax.reduce(halves, axis=1), 32))
    assert np.isnan(absolute[:32]).all()
    same_bits(absolute[32:], np.repeat(np.abs(halves[1]).max(), 32))


def test_atomic_operations_lose_no_update():
    x, target = np.arange(256, dtype=np.int32), np.zeros(256, np.int32)
    # every thread adds to the first element of the second input
    code = "ld.param.b64 %d1, [x1]; atom.global.gpu.acq_rel.add.u32 %y0, [%d1], %x0;"
    before = apply(code, x, target, out="i4")
    np.testing.assert_array_equal(before, np.cumsum(x) - x)
    np.testing.assert_array_equal(target, [x.sum()] + [0] * 255)
    code = "ld.param.b64 %d1, [x1]; red.global.add.f32 [%d1], %x0; mov.b32 %y0, 0;"
    total = np.zeros(256, np.float32)
    apply(code, x.astype(np.float32), total, out="i4")
    assert total[0] == x.sum()
    code = "atom.global.cas.b32 %y0, [%at_x1], 5, 9; atom.global.exch.b32 %y1, [%at_x0], 3;"
    target = x.copy()
    found, exchanged = apply(code, x.copy(), target, out=("i4", "i4"))
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(exchanged, x)
    np.testing.assert_array_equal(target, np.where(x == 5, 9, x))


def test_threads_that_part_meet_again():
    code = """
    setp.gt.s32 %p1, %x0, 12;
    mov.b32 %y0, 0;
    @%p1 bra LARGE;
    mov.b32 %r1, 0;
LOOP:
    add.s32 %y0, %y0, %r1;
    add.s32 %r1, %r1, 1;
    setp.le.s32 %p2, %r1, %x0;
    @%p2 bra LOOP;
    bra MEET;
LARGE:
    neg.s32 %y0, %x0;
MEET:
    bar.sync 0;
    shfl.sync.bfly.b32 %y1, %y0, 1, 31, -1;
    """
    x = np.tile(np.arange(32, dtype=np.int32), 4)
    mine, other = apply(code, x, out=("i4", "i4"), threads=64)
    expected = np.where(x > 12, -x, x * (x + 1) // 2)
    np.testing.assert_array_equal(mine, expected)
    np.testing.assert_array_equal(other.reshape(-1, 2), expected.reshape(-1, 2)[:, ::-1])


def test_blocks_that_part_do_not_wait_for_each_other():
    code = """
    mov.b32 %y0, 0;
    mov.b32 %r1, %index1;
LOOP:
    setp.lt.s32 %p1, %r1, 0;
    @%p1 bra DONE;
    add.s32 %y0, %y0, %r1;
    bar.sync 0;
    sub.s32 %r1, %r1, 1;
    bra.uni LOOP;
DONE:
    """
    x = np.zeros(32 * 20, np.int32)
    block = np.arange(32 * 20) // 32
    np.testing.assert_array_equal(apply(code, x, out="i4"), block * (block + 1) // 2)


def test_shared_memory_passes_values_on():
    code = """
    mov.b32 %r1, dynamic;
    mad.lo.s32 %r2, %index2, 4, %r1;
    st.shared.b32 [%r2], %x0;
    bar.sync 0;
    mad.lo.s32 %r3, %index2, -4, 252;
    ld.shared.b32 %y0, [%r3];
    bar.sync 0;
    st.shared.v2.b16 [%r2], {%h1, 7};
    ld.shared.b32 %y1, [%r2];
    """
    x = integers(32, 192)
    result, packed = apply("mov.b16 %h1, 5;" + code, x, out=("u4", "u4"), threads=64, shared=256)
    same_bits(result, x.reshape(-1, 64)[:, ::-1].reshape(-1))
    np.testing.assert_array_equal(packed, 5 + (7 << 16))


def test_asynchronous_copies_land_when_waited_for():
    code = """
    mul.lo.s32 %r1, %index2, 4;
    cp.async.ca.shared.global [%r1], [%at_x0], 4;
    cp.async.commit_group;
    setp.lt.s32 %p1, %index2, 5; selp.b32 %r2, 4, 0, %p1;
    cp.async.ca.shared.global [%r1 + 128], [%at_x0], 4, %r2;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    ld.shared.b32 %y0, [%r1];
    cp.async.wait_all;
    ld.shared.b32 %y1, [%r1 + 128];
    """
    x = integers(32, 64)
    first, second = apply(code, x, out=("u4", "u4"), shared=256)
    same_bits(first, x)
    same_bits(second, np.where(np.arange(64) % 32 < 5, x, 0))


WIDTHS = [("v2", "b32"), ("v4", "b32"), ("v2", "b64"), ("v4", "b16"), ("v2", "b8"), ("v4", "b8")]
WIDE = [("v8", "b32"), ("v4", "b64")]  # 256 bits


@pytest.mark.parametrize(
    ("length", "kind", "target"),
    [(*width, "sm_90a") for width in WIDTHS] + [(*width, "sm_100a") for width in WIDE],
)
def test_vector_loads_and_stores(length, kind, target):
    """Let half of the threads copy their vector, reversed, and the others write a constant."""
    count, bits = int(length[1:]), int(kind[1:])
    names = [f"%{'d' if bits == 64 else 'r' if bits == 32 else 'h'}{i}" for i in range(count)]
    load = "ld.global.L1::evict_first" if bits == 32 else "ld.relaxed.gpu.global"
    load = "ld.global.nc" if target == "sm_100a" else load
    code = f"""
    setp.lt.s32 %p1, %index2, 16; mov.b32 %y0, 0;
    {" ".join(f"mov.b{max(bits, 16)} {name}, 9;" for name in names)}
    ld.param.b64 %at_x0, [x0]; mad.wide.u32 %at_x0, %index0, {count * bits // 8}, %at_x0;
    ld.param.b64 %at_x1, [x1]; mad.wide.u32 %at_x1, %index0, {count * bits // 8}, %at_x1;
    @%p1 {load}.{length}.{kind} {{{", ".join(names)}}}, [%at_x0 + 0];
    st.global.{length}.{kind} [%at_x1], {{{", ".join(reversed(names))}}};
    """
    source, written = (aligned(32 * count, f"u{bits // 8}") for _ in range(2))
    source[:] = np.arange(len(source)) % 251
    apply(code, source[:32], written[:32], out="i4", target=target, extra=(source, written))
    rows = source.reshape(32, count)[:, ::-1].copy()
    rows[16:] = 9
    same_bits(written, rows.reshape(-1))


def aligned(count, dtype):
    """Return an array that starts at a multiple of 32 bytes."""
    size = count * np.dtype(dtype).itemsize
    area = np.zeros(size + 32, np.uint8)
    start = -area.ctypes.data % 32
    return area[start : start + size].view(dtype)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices(count, trans):
    """Compare with the definition: thread t holds two elements of row t // 4 of each matrix."""
    x = np.arange(32 * count * 2, dtype=np.uint32)
    registers = [x[i::count].copy() for i in range(count)]
    names = ", ".join(f"%x{i}" for i in range(count))
    targets = ", ".join(f"%y{i}" for i in range(count))
    code = f"""
    mul.lo.s32 %r1, %index2, 16;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r1], {{{names}}};
    bar.warp.sync -1;
    mul.lo.s32 %r2, %index2, {4 * count};
    """
    rows = "".join(f"ld.shared.b32 %y{i}, [%r2 + {4 * i}];" for i in range(count))
    stored = apply(code + rows, *registers, out=("u4",) * count, shared=128 * count)
    pairs = np.stack(registers).reshape(count, 2, 32).view(np.uint16).reshape(count, 2, 8, 8)
    matrices = pairs.swapaxes(0, 1)
    matrices = matrices.swapaxes(2, 3) if trans else matrices
    expected = np.ascontiguousarray(matrices).reshape(2, -1).view(np.uint32)
    same_bits(np.stack(stored, axis=-1).reshape(2, -1), expected)
    back = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{targets}}}, [%r1];"
    loaded = apply(code + back, *registers, out=("u4",) * count, shared=128 * count)
    for register, value in zip(registers, loaded, strict=True):
        same_bits(value, register)
