"""The global gradient norm, first half: one partial sum a program."""

import triton
import triton.language as tl

from fused_optim.kernels.update import column, located


@triton.jit
def norm_chunk(pointer, start, numel, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of one chunk, zero past its end."""
    offs = start + tl.arange(0, BLOCK)
    # without a mask the accesses are 128 bits wide; only the last chunk of a tensor needs one
    if FULL:
        return tl.load(pointer + offs)
    return tl.load(pointer + offs, mask=offs < numel, other=0.0)


@triton.jit
def accumulate(squares, bad, g):
    """Add a chunk. Squares in float64 neither overflow nor vanish, whatever the gradient."""
    wide = g.to(tl.float64)
    return squares + wide * wide, bad + (wide - wide)


@triton.jit(do_not_specialize=["chunks"])
def norm(
    table_ptr,  # int64 [rows, WIDTH]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: see update
    partial_ptr,  # float64 [programs, 2]: sum of squares; 0, or NaN after an Inf or NaN
    chunks,
    GRAD: tl.constexpr,  # the column of the gradient
    DTYPE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Sum the squares of every chunk that falls to this program, in a fixed order."""
    squares = tl.zeros((BLOCK,), tl.float64)
    bad = tl.zeros((BLOCK,), tl.float64)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        row, within = located(first_ptr, span_ptr, chunk, SPAN)
        row_ptr = table_ptr + row * WIDTH
        start = within * BLOCK
        numel = tl.load(row_ptr)
        pointer = column(row_ptr, GRAD, DTYPE, VECTOR)
        if start + BLOCK <= numel:
            squares, bad = accumulate(squares, bad, norm_chunk(pointer, start, numel, True, BLOCK))
        else:
            squares, bad = accumulate(squares, bad, norm_chunk(pointer, start, numel, False, BLOCK))
    tl.store(partial_ptr + 2 * tl.program_id(0), tl.sum(squares))
    tl.store(partial_ptr + 2 * tl.program_id(0) + 1, tl.sum(bad))
