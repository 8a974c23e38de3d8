"""The one kernel that runs every rule on every storage format."""

import triton
import triton.language as tl

from fused_optim.kernels.formats.stochastic_rounding import random_bits
from fused_optim.kernels.rules.common import ema_update, gradient

NUM_COMMON_SCALARS = tl.constexpr(8)  # scalars of a row that come before those of the rule


@triton.jit
def column(row_ptr, i: tl.constexpr, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """The address in column ``i``, known to be aligned for VECTOR elements."""
    pointer = tl.load(row_ptr + 2 + i).to(tl.pointer_type(DTYPE))
    # the hint must sit on the pointer (on the integer, the cast would lose it), and cover the same
    # number of elements in every column, or the compiler changes layouts through shared memory
    return tl.multiple_of(pointer, VECTOR * DTYPE.primitive_bitwidth // 8)


@triton.jit
def located(first_ptr, span_ptr, chunk, CHUNKS_PER_SPAN: tl.constexpr):
    """The row that a chunk belongs to, and the chunk's number within the row."""
    row = tl.load(span_ptr + chunk // CHUNKS_PER_SPAN)
    if CHUNKS_PER_SPAN > 1:
        last = tl.load(span_ptr + chunk // CHUNKS_PER_SPAN + 1)
        # for a tensor that fills the span there is nothing to search
        while row < last:
            middle = (row + last + 1) // 2
            later = tl.load(first_ptr + middle) <= chunk
            row = tl.where(later, middle, row)
            last = tl.where(later, last, middle - 1)
    return row.to(tl.int64), chunk - tl.load(first_ptr + row)


@triton.jit
def values(ptr, COUNT: tl.constexpr):
    """``COUNT`` consecutive scalars."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.load(ptr + i),)
    return out


@triton.jit
def columns(row_ptr, VALUE: tl.constexpr, SPEC: tl.constexpr):
    """Return the pointers of one value, a pointer a column."""
    FIRST: tl.constexpr = SPEC.FIRST[VALUE]
    LAST: tl.constexpr = SPEC.FIRST[VALUE + 1]
    out = ()
    for i in tl.static_range(FIRST, LAST):
        out = out + (column(row_ptr, i, SPEC.DTYPES[i], SPEC.VECTOR),)
    return out


@triton.jit
def loaded(row_ptr, start, offs, mask, SPEC: tl.constexpr):
    """Return the pointers of every value, and the values as their codecs load them."""
    VALUES: tl.constexpr = len(SPEC.LOADS)
    pointers = ()
    found = ()
    for i in tl.static_range(VALUES):
        pointers = pointers + (columns(row_ptr, i, SPEC),)
        found = found + (SPEC.LOADS[i](pointers[i], start, offs, mask, SPEC.COMPUTE),)
    return pointers, found


@triton.jit
def states(found, COUNT: tl.constexpr):
    """The state of a rule: what comes after parameter and gradient."""
    out = ()
    for i in tl.static_range(2, 2 + COUNT):
        out = out + (found[i],)
    return out


@triton.jit
def lost(old, p, kept, mask):
    """How many elements of a parameter change, but not as they are kept."""
    stays = (p != old) & (kept == old)
    if mask is not None:
        stays = stays & mask
    return tl.sum(stays.to(tl.int32))


@triton.jit
def noise_of(keys, elements, i: tl.constexpr, SPEC: tl.constexpr):
    """Random bits for each element of value ``i``; if that needs none, anything at all."""
    # before Triton 3.7 a jit function cannot return None
    if SPEC.STOCHASTIC[i]:
        return random_bits(keys, elements, i)
    else:
        return elements


@triton.jit
def update_block(
    row_ptr, start, offs, numel, average, keys, common, h, FULL: tl.constexpr, SPEC: tl.constexpr
):
    """Load a block through the codecs, run the rule, store; return how many elements stall."""
    VALUES: tl.constexpr = len(SPEC.LOADS)
    STATES: tl.constexpr = VALUES - 2 - SPEC.EMA
    # without a mask the accesses are 128 bits wide; only the last block of a tensor needs one
    if FULL:
        mask = None
    else:
        mask = offs < numel
    pointers, found = loaded(row_ptr, start, offs, mask, SPEC)
    p, state = SPEC.RULE(found[0], gradient(found[1], found[0], common), states(found, STATES), h)
    if SPEC.EMA:
        state = state + (ema_update(found[VALUES - 1], p, average),)
    elements = tl.load(row_ptr + 1) + offs
    noise = noise_of(keys, elements, 0, SPEC)
    kept = SPEC.STORES[0](pointers[0], start, offs, mask, p, noise)
    for i in tl.static_range(2, VALUES):  # the second value is the gradient, which is not stored
        noise = noise_of(keys, elements, i, SPEC)
        SPEC.STORES[i](pointers[i], start, offs, mask, state[i - 2], noise)
    stalled = 0
    if SPEC.COUNTS:
        stalled = lost(found[0], p, kept, mask)
    return stalled


@triton.jit
def update(
    table_ptr,  # int64 [rows, 2 + columns]: numel, place of the first element, addresses of columns
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: the row of the first chunk of each SPAN chunks, the last row
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS]: skip, average, 2 keys, 4 of gradient, of the rule
    count_ptr,  # int32 [grid], written: how many elements stall; or None, see UpdateSpec.COUNTS
    SPEC: tl.constexpr,  # UpdateSpec
):
    """Update CHUNK consecutive elements of one parameter and its state, in place."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    COLUMNS: tl.constexpr = len(SPEC.DTYPES)
    row, chunk = located(first_ptr, span_ptr, tl.program_id(0), SPEC.CHUNKS_PER_SPAN)
    start = chunk * SPEC.CHUNK
    row_ptr = table_ptr + row * (2 + COLUMNS)
    row_scalars = scalar_ptr + row * (NUM_COMMON_SCALARS + SPEC.SCALARS)
    if tl.load(row_scalars) == 0:
        numel = tl.load(row_ptr)
        average = tl.load(row_scalars + 1)
        keys = values(row_scalars + 2, 2)
        common = values(row_scalars + 4, 4)
        h = values(row_scalars + NUM_COMMON_SCALARS, SPEC.SCALARS)
        stalled = 0
        if SPEC.CHUNK == BLOCK:
            # shared by both branches: with offsets formed in each, ptxas spills registers
            offs = start + tl.arange(0, BLOCK)
            if start + BLOCK <= numel:
                stalled = update_block(
                    row_ptr, start, offs, numel, average, keys, common, h, True, SPEC
                )
            else:
                stalled = update_block(
                    row_ptr, start, offs, numel, average, keys, common, h, False, SPEC
                )
        else:
            end = tl.minimum(start + SPEC.CHUNK, numel)
            tail = end - (end - start) % BLOCK
            for first in range(start, tail, BLOCK):
                offs = first + tl.arange(0, BLOCK)
                stalled += update_block(
                    row_ptr, first, offs, numel, average, keys, common, h, True, SPEC
                )
            if tail < end:
                offs = tail + tl.arange(0, BLOCK)
                stalled += update_block(
                    row_ptr, tail, offs, numel, average, keys, common, h, False, SPEC
                )
        if SPEC.COUNTS:
            tl.store(count_ptr + tl.program_id(0), stalled)
