"""Triton kernels, compiled and interpreted, against numpy bit for bit."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from ci import ptxsim
from ci.ptxsim.tests.snippets import same_bits

ARCHS = [80, 90, 100]
EXACT = {"enable_fp_fusion": False}


@pytest.fixture(params=ARCHS)
def arch(request):
    with ptxsim.install(request.param):
        yield request.param


@triton.jit
def column(row_ptr, i: tl.constexpr, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    pointer = tl.load(row_ptr + 1 + i).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, VECTOR * DTYPE.primitive_bitwidth // 8)


@triton.jit
def adamw_chunk(row_ptr, offs, mask, h, LOW: tl.constexpr, VECTOR: tl.constexpr):
    p_ptr = column(row_ptr, 0, LOW, VECTOR) + offs
    m_ptr, v_ptr = (
        column(row_ptr, 2, tl.float32, VECTOR) + offs,
        column(row_ptr, 3, tl.float32, VECTOR) + offs,
    )
    p = tl.load(p_ptr, mask=mask).to(tl.float32)
    g = tl.load(column(row_ptr, 1, LOW, VECTOR) + offs, mask=mask).to(tl.float32)
    m, v = tl.load(m_ptr, mask=mask), tl.load(v_ptr, mask=mask)
    decay, weight1, weight2, step_size, inv_bias_correction2_sqrt, eps = h
    p = p * decay
    m = m + weight1 * (g - m)
    v = v + weight2 * (g * g - v)
    p = p - step_size * tl.div_rn(m, tl.sqrt_rn(v) * inv_bias_correction2_sqrt + eps)
    tl.store(p_ptr, p.to(LOW), mask=mask)
    tl.store(m_ptr, m, mask=mask)
    tl.store(v_ptr, v, mask=mask)


@triton.jit
def adamw(
    table_ptr, chunk_ptr, h_ptr, LOW: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr
):
    row_ptr = table_ptr + tl.load(chunk_ptr + 2 * tl.program_id(0)).to(tl.int64) * 5
    start = tl.load(chunk_ptr + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    numel = tl.load(row_ptr)
    h = ()
    for i in tl.static_range(6):
        h = h + (tl.load(h_ptr + i),)  # noqa: RUF005  Triton knows no unpacking
    offs = start + tl.arange(0, BLOCK)
    if start + BLOCK <= numel:
        adamw_chunk(row_ptr, offs, None, h, LOW, VECTOR)
    else:
        adamw_chunk(row_ptr, offs, offs < numel, h, LOW, VECTOR)


SCALARS = np.array([1 - 1e-5, 0.1, 0.001, 1e-2, 1 / 0.001**0.5, 1e-8], np.float32)
BLOCK = 512


def rows_of(numels, dtype, offset=0):
    """Return parameter, gradient and two states per number of elements; views if offset."""
    torch.manual_seed(0)
    rows = []
    for numel in numels:
        low = [torch.randn(numel + offset).to(dtype)[offset:] for _ in range(2)]
        rows.append(
            [*low, torch.randn(numel + offset)[offset:], torch.rand(numel + offset)[offset:]]
        )
    return rows


def launch_adamw(rows, dtype, vector=4):
    """Update all rows in one launch."""
    table = torch.tensor([[row[0].numel(), *(x.data_ptr() for x in row)] for row in rows])
    chunks = [(i, k) for i, row in enumerate(rows) for k in range(-(-row[0].numel() // BLOCK))]
    low = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    arguments = table, torch.tensor(chunks, dtype=torch.int32), torch.from_numpy(SCALARS)
    adamw[(len(chunks),)](*arguments, LOW=low, VECTOR=vector, BLOCK=BLOCK, **EXACT)


def adamw_in_numpy(row):
    """Compute the same update, one float32 operation at a time."""
    p, g, m, v = (x.float().numpy().copy() for x in row)
    decay, weight1, weight2, step_size, inv_bias_correction2_sqrt, eps = SCALARS
    p = p * decay
    m = m + weight1 * (g - m)
    v = v + weight2 * (g * g - v)
    p = p - step_size * (m / (np.sqrt(v) * inv_bias_correction2_sqrt + eps))
    return torch.from_numpy(p).to(row[0].dtype), row[1], torch.from_numpy(m), torch.from_numpy(v)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adamw_through_an_address_table(arch, dtype, offset):
    rows = rows_of([1, 511, 512, 513, 5000], dtype, offset)
    expected = [adamw_in_numpy(row) for row in rows]
    launch_adamw(rows, dtype, vector=1 if offset else 4)
    for row, wanted in zip(rows, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(row, wanted, strict=True))


def test_the_last_blocks_of_a_huge_sparse_mapping(tmp_path):
    numel = 2**31 + 1000
    path = tmp_path / "sparse"
    row = torch.from_file(str(path), shared=True, size=4 * numel).split(numel)
    path.unlink()  # the mapping stays
    tail = slice(numel - 700, numel)
    for x, values in zip(row, rows_of([700], torch.float32)[0], strict=True):
        x[tail] = values
    expected = adamw_in_numpy([x[tail] for x in row])
    before = row[0][numel - 1024 : numel - 1000].clone()
    table = torch.tensor([[numel, *(x.data_ptr() for x in row)]])
    count = -(-numel // BLOCK)
    chunks = torch.zeros(count, 2, dtype=torch.int32)
    chunks[:, 1] = torch.arange(count)
    with ptxsim.install(90, blocks=lambda kernel, count: range(count - 2, count)):
        adamw[(count,)](
            table, chunks, torch.from_numpy(SCALARS), LOW=tl.float32, VECTOR=1, BLOCK=BLOCK, **EXACT
        )
    assert all(torch.equal(x[tail], y) for x, y in zip(row, expected, strict=True))
    assert torch.equal(row[0][numel - 1024 : numel - 1000], before)


@triton.jit
def reductions(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros((), tl.float64)
    largest = tl.zeros((), tl.float32)
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        offs = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
        total += tl.sum(x * x).to(tl.float64)
        largest = tl.maximum(largest, tl.max(tl.abs(x)))
    out = out_ptr + 3 * tl.program_id(0)
    tl.store(out, total)
    tl.store(out + 1, largest.to(tl.float64))
    tl.store(out + 2, tl.div_rn(tl.sqrt_rn(total.to(tl.float32)), 3.0).to(tl.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reductions_through_shuffles_and_shared_memory(arch, dtype):
    n, programs, block = 10000, 7, 1024
    # so few bits that every order of summation gives the same result
    x = torch.randint(-8, 9, (n,)).to(dtype)
    out = torch.zeros(programs, 3, dtype=torch.float64)
    reductions[(programs,)](x, out, n, BLOCK=block, **EXACT)
    wide = np.zeros(-(-n // (programs * block)) * programs * block)
    wide[:n] = x.double().numpy()
    parts = wide.reshape(-1, programs, block).transpose(1, 0, 2).reshape(programs, -1)
    total = (parts**2).sum(axis=1)
    root = np.sqrt(total.astype(np.float32)) / np.float32(3)
    expected = np.stack([total, np.abs(parts).max(axis=1), root.astype(np.float64)], axis=1)
    same_bits(out.numpy().reshape(-1), expected.reshape(-1))


@triton.jit
def float64_arithmetic(x_ptr, y_ptr, out_ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs)
    tl.store(out_ptr + offs, x * y + x)
    tl.store(out_ptr + BLOCK + offs, x / y)
    tl.store(out_ptr + 2 * BLOCK + offs, tl.sqrt(tl.abs(x)))
    tl.store(out_ptr + 3 * BLOCK + offs, tl.where(x > y, x, y).to(tl.float32).to(tl.float64))
    power = y
    for _ in tl.static_range(N):
        power = power * power
    tl.store(out_ptr + 4 * BLOCK + offs, power)


def test_float64(arch):
    x, y = torch.randn(2, 256, dtype=torch.float64).unbind()
    out = torch.zeros(5, 256, dtype=torch.float64)
    float64_arithmetic[(1,)](x, y, out, N=5, BLOCK=256, **EXACT)
    a, b = x.numpy(), y.numpy()
    with np.errstate(under="ignore"):
        power = b.copy()
        for _ in range(5):
            power = power * power
    chosen = np.where(a > b, a, b).astype(np.float32).astype(np.float64)
    expected = [a * b + a, a / b, np.sqrt(np.abs(a)), chosen, power]
    same_bits(out.numpy().reshape(-1), np.concatenate(expected))


@triton.jit
def integer_arithmetic(x_ptr, y_ptr, out_ptr, shift, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs)
    tl.store(out_ptr + offs, x // y)
    tl.store(out_ptr + BLOCK + offs, x % y)
    tl.store(out_ptr + 2 * BLOCK + offs, (x << 3) ^ (y >> shift))
    tl.store(out_ptr + 3 * BLOCK + offs, tl.minimum(x, y) * tl.abs(y))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers(arch, dtype):
    info = torch.iinfo(dtype)
    x = torch.randint(info.min, info.max, (512,), dtype=dtype)
    y = torch.randint(-1000, 1000, (512,), dtype=dtype)
    y[::2] = torch.randint(info.min, info.max, (256,), dtype=dtype)
    y[y == 0] = 1
    out = torch.zeros(4, 512, dtype=dtype)
    integer_arithmetic[(1,)](x, y, out, 5, BLOCK=512)
    a, b = x.numpy(), y.numpy()
    truncated = [
        abs(int(i)) // abs(int(j)) * (1 if (i < 0) == (j < 0) else -1)
        for i, j in zip(a, b, strict=True)
    ]
    quotients = np.array(truncated, a.dtype)
    expected = [quotients, a - quotients * b, (a << 3) ^ (b >> 5), np.minimum(a, b) * np.abs(b)]
    same_bits(out.numpy().reshape(-1), np.concatenate(expected))


@triton.jit
def random_bits(out_ptr, seed, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, offs)
    tl.store(out_ptr + 4 * offs, a)
    tl.store(out_ptr + 4 * offs + 1, b)
    tl.store(out_ptr + 4 * offs + 2, c)
    tl.store(out_ptr + 4 * offs + 3, d)


def philox(counter, seed):
    """Compute Philox 4x32-10 (Salmon et al. 2011)."""
    words = [counter.astype(np.uint64), *np.zeros((3, len(counter)), np.uint64)]
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (second >> np.uint64(32)) ^ words[1] ^ key[0],
            second & low,
            (first >> np.uint64(32)) ^ words[3] ^ key[1],
            first & low,
        ]
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(words, axis=1).astype(np.uint32)


def test_random_numbers_are_those_of_philox(arch):
    out = torch.zeros(1024, 4, dtype=torch.int32)
    random_bits[(4,)](out, 0x123456789ABCDEF, BLOCK=256)
    same_bits(out.numpy().reshape(-1), philox(np.arange(1024), 0x123456789ABCDEF).reshape(-1))


@triton.jit
def gather(address_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    address = tl.load(address_ptr + offs, mask=offs < n, other=0)
    value = tl.load(address.to(tl.pointer_type(tl.float32)), mask=offs < n, other=-1.0)
    tl.store(out_ptr + offs, value)


def test_gather_through_a_block_of_pointers(arch):
    steps = [torch.tensor(float(i)) for i in range(100)]
    addresses = torch.tensor([step.data_ptr() for step in steps])
    out = torch.zeros(128)
    gather[(1,)](addresses, out, 100, BLOCK=128)
    assert out.tolist() == [*range(100), *[-1] * 28]


@triton.jit
def pipelined_sum(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=3):
        total += tl.load(x_ptr + start + tl.arange(0, BLOCK))
    tl.store(out_ptr + tl.arange(0, BLOCK), total)


def test_a_loop_with_asynchronous_copies(arch):
    x, out = torch.randn(512 * 9), torch.zeros(512)
    kernel = pipelined_sum[(1,)](x, out, len(x), BLOCK=512)
    assert "cp.async" in kernel.asm["ptx"]
    expected = np.zeros(512, np.float32)
    for row in x.numpy().reshape(-1, 512):
        expected += row
    same_bits(out.numpy(), expected)


@triton.jit
def quantise(x_ptr, code_ptr, scale_ptr, back_ptr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.reshape(tl.load(x_ptr + offs), (BLOCK // GROUP, GROUP))
    scale = tl.div_rn(tl.max(tl.abs(x), axis=1), 127.0)
    code = tl.floor(tl.div_rn(x, scale[:, None]) + 0.5).to(tl.int8)
    groups = tl.program_id(0) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(code_ptr + offs, tl.reshape(code, (BLOCK,)))
    tl.store(scale_ptr + groups, scale)
    tl.store(back_ptr + offs, tl.reshape(code.to(tl.float32) * scale[:, None], (BLOCK,)))


@pytest.mark.parametrize("group", [32, 256])
def test_eight_bit_codes(arch, group):
    x = torch.randn(4096)
    code, scale, back = (
        torch.zeros(4096, dtype=torch.int8),
        torch.zeros(4096 // group),
        torch.zeros(4096),
    )
    quantise[(4,)](x, code, scale, back, BLOCK=1024, GROUP=group, **EXACT)
    rows = x.numpy().reshape(-1, group)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.floor(rows / scales + np.float32(0.5)).astype(np.int8)
    same_bits(code.numpy(), codes.reshape(-1))
    same_bits(scale.numpy(), scales.reshape(-1))
    same_bits(back.numpy(), (codes * scales).astype(np.float32).reshape(-1))


@triton.jit
def scans_and_transposes(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i[:, None] * N + i[None, :])
    tl.store(out_ptr + i[:, None] * N + i[None, :], tl.trans(x))
    tl.store(out_ptr + N * N + i, tl.cumsum(tl.sum(x, axis=0)))
    tl.atomic_add(out_ptr + N * N + N, tl.sum(tl.sum(x, axis=0)))


def test_scans_transposes_and_atomics(arch):
    x = torch.randint(-9, 9, (32, 32)).float()
    out = torch.zeros(32 * 32 + 33)
    scans_and_transposes[(1,)](x, out, N=32)
    expected = torch.cat([x.T.reshape(-1), x.sum(0).cumsum(0), x.sum()[None]])
    assert torch.equal(out, expected)
