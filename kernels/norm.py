"""The first half of the norm over all gradients: one partial sum per program."""

import triton
import triton.language as tl

from fused_optim.kernels.update import find_row, load_address


@triton.jit
def load_gradient(pointer, start, numel, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Return a block of the gradient, zero past its end."""
    offs = start + tl.arange(0, BLOCK)
    # without a mask the accesses are 128 bits wide; only the last block of a tensor needs one
    if FULL:
        return tl.load(pointer + offs)
    return tl.load(pointer + offs, mask=offs < numel, other=0.0)


@triton.jit
def accumulate(squares, bad, g):
    """Add a block; the squares are float64, which neither overflow nor underflow for float32."""
    wide = g.to(tl.float64)
    return squares + wide * wide, bad + (wide - wide)


@triton.jit
def accumulate_chunk(squares, bad, pointer, start, numel, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Add the CHUNK elements from ``start`` on, block by block."""
    if CHUNK == BLOCK:
        if start + BLOCK <= numel:
            g = load_gradient(pointer, start, numel, True, BLOCK)
            squares, bad = accumulate(squares, bad, g)
        else:
            g = load_gradient(pointer, start, numel, False, BLOCK)
            squares, bad = accumulate(squares, bad, g)
    else:
        end = tl.minimum(start + CHUNK, numel)
        tail = end - (end - start) % BLOCK
        for first in range(start, tail, BLOCK):
            g = load_gradient(pointer, first, numel, True, BLOCK)
            squares, bad = accumulate(squares, bad, g)
        if tail < end:
            g = load_gradient(pointer, tail, numel, False, BLOCK)
            squares, bad = accumulate(squares, bad, g)
    return squares, bad


@triton.jit(do_not_specialize=["chunks"])
def norm(
    table_ptr,  # int64 [rows, WIDTH]: see update
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: see update
    partial_ptr,  # float64 [programs, 2]: sum of squares; 0, or NaN after an Inf or NaN
    chunks,
    GRAD: tl.constexpr,  # index of the column of the gradient
    DTYPE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,  # number of elements that are loaded at once
    CHUNK: tl.constexpr,  # number of elements of a chunk: BLOCK or a multiple
    CHUNKS_PER_SPAN: tl.constexpr,
    CONSECUTIVE: tl.constexpr,  # True if the chunks of a program are consecutive
):
    """Sum the squares of every chunk of this program, in a fixed order."""
    squares = tl.zeros((BLOCK,), tl.float64)
    bad = tl.zeros((BLOCK,), tl.float64)
    if CONSECUTIVE:
        share = tl.cdiv(chunks, tl.num_programs(0))
        first = tl.program_id(0) * share
        last = tl.minimum(first + share, chunks)
        step = 1
    else:
        first = tl.program_id(0)
        last = chunks
        step = tl.num_programs(0)
    for chunk in range(first, last, step):
        row, within = find_row(first_ptr, span_ptr, chunk, CHUNKS_PER_SPAN)
        row_ptr = table_ptr + row * WIDTH
        pointer = load_address(row_ptr, GRAD, DTYPE, VECTOR)
        numel = tl.load(row_ptr)
        squares, bad = accumulate_chunk(squares, bad, pointer, within * CHUNK, numel, BLOCK, CHUNK)
    tl.store(partial_ptr + 2 * tl.program_id(0), tl.sum(squares))
    tl.store(partial_ptr + 2 * tl.program_id(0) + 1, tl.sum(bad))
