"""The kernels that sum over each tensor, for rules that need the sums before their update."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import preprocess_grad
from fused_optim.kernels.signatures import CommonScalars
from fused_optim.kernels.update import (
    NUM_COMMON_SCALARS,
    find_row,
    load_scalars,
    load_values,
    take_states,
)


@triton.jit
def make_zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return COUNT blocks of float64 zeros."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (tl.zeros((BLOCK,), tl.float64),)
    return out


@triton.jit
def map_block(row_ptr, start, numel, common, s, FULL: tl.constexpr, SPEC: tl.constexpr):
    """Return the terms of one block as float64, zero past the end of the tensor."""
    offs = start + tl.arange(0, SPEC.BLOCK)
    # without a mask the accesses are 128 bits wide; only the last block of a tensor needs one
    if FULL:
        mask = None
    else:
        mask = offs < numel
    COUNT: tl.constexpr = SPEC.NUM_SUMS
    _, values = load_values(row_ptr, start, offs, mask, SPEC)
    g = preprocess_grad(values[1], values[0], common)
    terms = SPEC.MAP_FN(values[0], g, take_states(values, SPEC.NUM_STATES), s)
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.where(offs < numel, terms[i].to(tl.float64), 0.0),)
    return out


@triton.jit
def add_terms(sums, terms, COUNT: tl.constexpr):
    """Return the sums of COUNT pairs of blocks."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (sums[i] + terms[i],)
    return out


@triton.jit
def map_chunk(row_ptr, start, numel, common, s, SPEC: tl.constexpr):
    """Return the terms of CHUNK elements, summed over the blocks in order."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    COUNT: tl.constexpr = SPEC.NUM_SUMS
    end = tl.minimum(start + SPEC.CHUNK, numel)
    tail = end - (end - start) % BLOCK
    sums = make_zeros(COUNT, BLOCK)
    for first in range(start, tail, BLOCK):
        sums = add_terms(sums, map_block(row_ptr, first, numel, common, s, True, SPEC), COUNT)
    if tail < end:
        sums = add_terms(sums, map_block(row_ptr, tail, numel, common, s, False, SPEC), COUNT)
    return sums


@triton.jit
def store_sums(out_ptr, terms, COUNT: tl.constexpr):
    """Store the sum of each of COUNT blocks."""
    for i in tl.static_range(COUNT):
        tl.store(out_ptr + i, tl.sum(terms[i]))


@triton.jit
def reduce(
    table_ptr,  # int64 [rows, 2 + columns]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: see update
    scalar_ptr,  # COMPUTE [rows, NUM_COMMON_SCALARS + NUM_SCALARS]: see update
    sum_ptr,  # float64 [grid, NUM_SUMS], written
    SPEC: tl.constexpr,  # ReduceSpec
):
    """Sum the terms of CHUNK consecutive elements of one parameter."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    COLUMNS: tl.constexpr = len(SPEC.DTYPES)
    COUNT: tl.constexpr = SPEC.NUM_SUMS
    row, chunk = find_row(first_ptr, span_ptr, tl.program_id(0), SPEC.CHUNKS_PER_SPAN)
    start = chunk * SPEC.CHUNK
    row_ptr = table_ptr + row * (2 + COLUMNS + 2 * SPEC.STRIDED)
    row_scalars = scalar_ptr + row * (NUM_COMMON_SCALARS + SPEC.NUM_SCALARS)
    numel = tl.load(row_ptr)
    common = CommonScalars(*load_scalars(row_scalars, NUM_COMMON_SCALARS))
    s = load_scalars(row_scalars + NUM_COMMON_SCALARS, SPEC.NUM_ELEMENTWISE)
    out_ptr = sum_ptr + tl.program_id(0).to(tl.int64) * COUNT
    if SPEC.CHUNK != BLOCK:
        store_sums(out_ptr, map_chunk(row_ptr, start, numel, common, s, SPEC), COUNT)
    elif start + BLOCK <= numel:
        store_sums(out_ptr, map_block(row_ptr, start, numel, common, s, True, SPEC), COUNT)
    else:
        store_sums(out_ptr, map_block(row_ptr, start, numel, common, s, False, SPEC), COUNT)


@triton.jit
def finalize(
    table_ptr,  # int64 [rows, WIDTH]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    sum_ptr,  # float64 [chunks, NUM_SUMS] from reduce
    scalar_ptr,  # COMPUTE [rows, NUM_COMMON_SCALARS + NUM_SCALARS]: the last of each row, written
    FINALIZE_FN: tl.constexpr,  # (sums, numel, scalars) -> scalars with those of the reduction
    NUM_SUMS: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
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
    rule_scalars = scalar_ptr + row * (NUM_COMMON_SCALARS + NUM_SCALARS) + NUM_COMMON_SCALARS
    s = ()
    for i in tl.static_range(NUM_ELEMENTWISE):
        s = s + (tl.load(rule_scalars + i).to(tl.float64),)
    s = FINALIZE_FN(sums, tl.load(table_ptr + row * WIDTH).to(tl.float64), s)
    for i in tl.static_range(NUM_ELEMENTWISE, NUM_SCALARS):
        tl.store(rule_scalars + i, s[i].to(COMPUTE))
