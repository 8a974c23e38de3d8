"""Sums over each tensor, for rules that need them before their update."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.common import gradient
from fused_optim.kernels.update import HEAD, loaded, located, states, values


@triton.jit
def measured(
    row_ptr,
    start,
    offs,
    numel,
    common,
    h,
    FULL: tl.constexpr,
    MEASURE: tl.constexpr,
    STATES: tl.constexpr,
    LOADS: tl.constexpr,
    FIRST: tl.constexpr,
    DTYPES: tl.constexpr,
    COMPUTE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The quantities of one chunk, summed in float64."""
    # without a mask the accesses are 128 bits wide; only the last chunk of a tensor needs one
    if FULL:
        mask = None
    else:
        mask = offs < numel
    _, found = loaded(row_ptr, start, offs, mask, LOADS, FIRST, DTYPES, COMPUTE, VECTOR)
    g = gradient(found[1], found[0], common)
    quantities = MEASURE(found[0], g, states(found, STATES), h)
    sums = ()
    for i in tl.static_range(len(quantities)):
        live = tl.where(offs < numel, quantities[i].to(tl.float64), 0.0)
        sums = sums + (tl.sum(live),)
    return sums


@triton.jit
def measure(
    table_ptr,  # int64 [rows, 2 + columns]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: see update
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS]: see update
    sum_ptr,  # float64 [grid, QUANTITIES], written
    MEASURE: tl.constexpr,
    QUANTITIES: tl.constexpr,
    STATES: tl.constexpr,
    LOADS: tl.constexpr,
    FIRST: tl.constexpr,
    DTYPES: tl.constexpr,
    COMPUTE: tl.constexpr,
    SCALARS: tl.constexpr,
    EARLY: tl.constexpr,  # how many of the rule's scalars are known
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Sum the quantities of BLOCK consecutive elements of one parameter."""
    row, chunk = located(first_ptr, span_ptr, tl.program_id(0), SPAN)
    start = chunk * BLOCK
    row_ptr = table_ptr + row * (2 + len(DTYPES))
    row_scalars = scalar_ptr + row * (HEAD + SCALARS)
    numel = tl.load(row_ptr)
    common = values(row_scalars + 4, 4)
    h = values(row_scalars + HEAD, EARLY)
    offs = start + tl.arange(0, BLOCK)
    out_ptr = sum_ptr + tl.program_id(0).to(tl.int64) * QUANTITIES
    if start + BLOCK <= numel:
        sums = measured(
            row_ptr,
            start,
            offs,
            numel,
            common,
            h,
            True,
            MEASURE,
            STATES,
            LOADS,
            FIRST,
            DTYPES,
            COMPUTE,
            VECTOR,
        )
    else:
        sums = measured(
            row_ptr,
            start,
            offs,
            numel,
            common,
            h,
            False,
            MEASURE,
            STATES,
            LOADS,
            FIRST,
            DTYPES,
            COMPUTE,
            VECTOR,
        )
    for i in tl.static_range(QUANTITIES):
        tl.store(out_ptr + i, sums[i])


@triton.jit
def finish(
    table_ptr,  # int64 [rows, WIDTH]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    sum_ptr,  # float64 [chunks, QUANTITIES] from measure
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS]: the last of each row are written
    FINISH: tl.constexpr,
    QUANTITIES: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    SCALARS: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Form the last scalars of one row from the sums of its chunks, in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(first_ptr + row), tl.load(first_ptr + row + 1)
    sums = ()
    for i in tl.static_range(QUANTITIES):
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, BLOCK):
            chunk = start + tl.arange(0, BLOCK)
            total += tl.load(sum_ptr + chunk * QUANTITIES + i, mask=chunk < last, other=0.0)
        sums = sums + (tl.sum(total),)
    row_scalars = scalar_ptr + row * (HEAD + SCALARS)
    h = ()
    for i in tl.static_range(EARLY):
        h = h + (tl.load(row_scalars + HEAD + i).to(tl.float64),)
    late = FINISH(sums, tl.load(table_ptr + row * WIDTH).to(tl.float64), h)
    for i in tl.static_range(EARLY, SCALARS):
        tl.store(row_scalars + HEAD + i, late[i - EARLY].to(COMPUTE))
