"""Sums over each tensor, for rules that need them before their update."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import gradient
from fused_optim.kernels.update import NUM_COMMON_SCALARS, loaded, located, states, values


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return COUNT blocks of float64 zeros."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (tl.zeros((BLOCK,), tl.float64),)
    return out


@triton.jit
def measured(row_ptr, start, numel, common, h, FULL: tl.constexpr, SPEC: tl.constexpr):
    """Return the quantities of one block as float64, zero past the end of the tensor."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    NUM_SUMS: tl.constexpr = SPEC.NUM_SUMS
    offs = start + tl.arange(0, BLOCK)
    # without a mask the accesses are 128 bits wide; only the last block of a tensor needs one
    if FULL:
        mask = None
    else:
        mask = offs < numel
    _, found = loaded(row_ptr, start, offs, mask, SPEC)
    g = gradient(found[1], found[0], common)
    num_sums = SPEC.MAP_FN(found[0], g, states(found, SPEC.STATES), h)
    out = ()
    for i in tl.static_range(NUM_SUMS):
        out = out + (tl.where(offs < numel, num_sums[i].to(tl.float64), 0.0),)
    return out


@triton.jit
def added(sums, num_sums, COUNT: tl.constexpr):
    """Return the sums of COUNT pairs."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (sums[i] + num_sums[i],)
    return out


@triton.jit
def measured_chunk(row_ptr, start, numel, common, h, SPEC: tl.constexpr):
    """Return the quantities of CHUNK elements, the blocks added up in their order."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    NUM_SUMS: tl.constexpr = SPEC.NUM_SUMS
    end = tl.minimum(start + SPEC.CHUNK, numel)
    tail = end - (end - start) % BLOCK
    sums = zeros(NUM_SUMS, BLOCK)
    for first in range(start, tail, BLOCK):
        sums = added(sums, measured(row_ptr, first, numel, common, h, True, SPEC), NUM_SUMS)
    if tail < end:
        sums = added(sums, measured(row_ptr, tail, numel, common, h, False, SPEC), NUM_SUMS)
    return sums


@triton.jit
def store_sums(out_ptr, num_sums, COUNT: tl.constexpr):
    """Store the sum of each of COUNT blocks."""
    for i in tl.static_range(COUNT):
        tl.store(out_ptr + i, tl.sum(num_sums[i]))


@triton.jit
def measure(
    table_ptr,  # int64 [rows, 2 + columns]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: see update
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS]: see update
    sum_ptr,  # float64 [grid, QUANTITIES], written
    SPEC: tl.constexpr,  # ReduceSpec
):
    """Sum the quantities of CHUNK consecutive elements of one parameter."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    COLUMNS: tl.constexpr = len(SPEC.DTYPES)
    NUM_SUMS: tl.constexpr = SPEC.NUM_SUMS
    row, chunk = located(first_ptr, span_ptr, tl.program_id(0), SPEC.CHUNKS_PER_SPAN)
    start = chunk * SPEC.CHUNK
    row_ptr = table_ptr + row * (2 + COLUMNS)
    row_scalars = scalar_ptr + row * (NUM_COMMON_SCALARS + SPEC.SCALARS)
    numel = tl.load(row_ptr)
    common = values(row_scalars + 4, 4)
    h = values(row_scalars + NUM_COMMON_SCALARS, SPEC.NUM_ELEMENTWISE)
    out_ptr = sum_ptr + tl.program_id(0).to(tl.int64) * NUM_SUMS
    if SPEC.CHUNK != BLOCK:
        store_sums(out_ptr, measured_chunk(row_ptr, start, numel, common, h, SPEC), NUM_SUMS)
    elif start + BLOCK <= numel:
        store_sums(out_ptr, measured(row_ptr, start, numel, common, h, True, SPEC), NUM_SUMS)
    else:
        store_sums(out_ptr, measured(row_ptr, start, numel, common, h, False, SPEC), NUM_SUMS)


@triton.jit
def finish(
    table_ptr,  # int64 [rows, WIDTH]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    sum_ptr,  # float64 [chunks, QUANTITIES] from measure
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS]: the last of each row are written
    FINALIZE_FN: tl.constexpr,
    NUM_SUMS: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    SCALARS: tl.constexpr,
    NUM_ELEMENTWISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Form the last scalars of one row from the sums of its chunks, in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(first_ptr + row), tl.load(first_ptr + row + 1)
    sums = ()
    for i in tl.static_range(NUM_SUMS):
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, BLOCK):
            chunk = start + tl.arange(0, BLOCK)
            total += tl.load(sum_ptr + chunk * NUM_SUMS + i, mask=chunk < last, other=0.0)
        sums = sums + (tl.sum(total),)
    row_scalars = scalar_ptr + row * (NUM_COMMON_SCALARS + SCALARS)
    h = ()
    for i in tl.static_range(NUM_ELEMENTWISE):
        h = h + (tl.load(row_scalars + NUM_COMMON_SCALARS + i).to(tl.float64),)
    late = FINALIZE_FN(sums, tl.load(table_ptr + row * WIDTH).to(tl.float64), h)
    for i in tl.static_range(NUM_ELEMENTWISE, SCALARS):
        tl.store(row_scalars + NUM_COMMON_SCALARS + i, late[i - NUM_ELEMENTWISE].to(COMPUTE))
