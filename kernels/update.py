"""The one kernel that runs every rule on every storage format."""

import triton
import triton.language as tl

from fused_optim.kernels.noise import random_bits
from fused_optim.kernels.rules.common import averaged, gradient

HEAD = tl.constexpr(8)  # scalars of a row that come before those of the rule


@triton.jit
def column(row_ptr, i: tl.constexpr, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """The address in column ``i``, known to be aligned for VECTOR elements."""
    pointer = tl.load(row_ptr + 2 + i).to(tl.pointer_type(DTYPE))
    # the hint must sit on the pointer (on the integer, the cast would lose it), and cover the same
    # number of elements in every column, or the compiler changes layouts through shared memory
    return tl.multiple_of(pointer, VECTOR * DTYPE.primitive_bitwidth // 8)


@triton.jit
def located(first_ptr, span_ptr, chunk, SPAN: tl.constexpr):
    """The row that a chunk belongs to, and the chunk's number within the row."""
    row = tl.load(span_ptr + chunk // SPAN)
    last = tl.load(span_ptr + chunk // SPAN + 1)
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
def columns(
    row_ptr, FIRST: tl.constexpr, COUNT: tl.constexpr, DTYPES: tl.constexpr, VECTOR: tl.constexpr
):
    """The pointers of one value."""
    out = ()
    for i in tl.static_range(FIRST, FIRST + COUNT):
        out = out + (column(row_ptr, i, DTYPES[i], VECTOR),)
    return out


@triton.jit
def loaded(
    row_ptr,
    start,
    offs,
    mask,
    LOADS: tl.constexpr,
    FIRST: tl.constexpr,
    DTYPES: tl.constexpr,
    COMPUTE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The pointers of every value, and the values, through their codecs."""
    pointers = ()
    found = ()
    for i in tl.static_range(len(LOADS)):
        pointers = pointers + (columns(row_ptr, FIRST[i], FIRST[i + 1] - FIRST[i], DTYPES, VECTOR),)
        found = found + (LOADS[i](pointers[i], start, offs, mask, COMPUTE),)
    return pointers, found


@triton.jit
def states(found, COUNT: tl.constexpr):
    """The state of a rule: what comes after parameter and gradient."""
    out = ()
    for i in tl.static_range(2, 2 + COUNT):
        out = out + (found[i],)
    return out


@triton.jit
def lost(pointer, old, p, mask):
    """How many elements of a parameter change, but not once they are rounded to its dtype."""
    stays = (p != old) & (p.to(pointer.dtype.element_ty) == old.to(pointer.dtype.element_ty))
    if mask is not None:
        stays = stays & mask
    return tl.sum(stays.to(tl.int32))


@triton.jit
def update_chunk(
    row_ptr,
    count_ptr,
    start,
    offs,
    mask,
    average,
    keys,
    common,
    h,
    RULE: tl.constexpr,
    EMA: tl.constexpr,
    LOADS: tl.constexpr,
    STORES: tl.constexpr,
    KEYED: tl.constexpr,
    FIRST: tl.constexpr,
    DTYPES: tl.constexpr,
    COMPUTE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Load through the codecs, run the rule, store through the codecs."""
    pointers, found = loaded(row_ptr, start, offs, mask, LOADS, FIRST, DTYPES, COMPUTE, VECTOR)
    state = states(found, len(LOADS) - 2 - EMA)
    p, state = RULE(found[0], gradient(found[1], found[0], common), state, h)
    if EMA:
        state = state + (averaged(found[len(LOADS) - 1], p, average),)
    if count_ptr is not None:
        tl.store(count_ptr + tl.program_id(0), lost(pointers[0][0], found[0], p, mask))
    elements = tl.load(row_ptr + 1) + offs
    new = (p, p) + state  # the second value is the gradient, which is not stored
    for i in tl.static_range(len(LOADS)):
        if i != 1:
            # before Triton 3.7 a jit function cannot return None, so the choice is made here
            if KEYED[i]:
                noise = random_bits(keys, elements, i)
                STORES[i](pointers[i], start, offs, mask, new[i], noise)
            else:
                STORES[i](pointers[i], start, offs, mask, new[i], None)


@triton.jit
def update(
    table_ptr,  # int64 [rows, 2 + columns]: numel, place of the first element, addresses of columns
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: the row of the first chunk of each SPAN chunks, the last row
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS]: skip, average, 2 keys, 4 of gradient, of the rule
    count_ptr,  # int32 [grid], written: see lost; or None
    RULE: tl.constexpr,
    EMA: tl.constexpr,  # the last value is the average of the parameter
    LOADS: tl.constexpr,  # a codec's functions for each value: parameter, gradient, states
    STORES: tl.constexpr,
    KEYED: tl.constexpr,  # whether it rounds stochastically
    FIRST: tl.constexpr,  # the first column of each value, and the number of columns
    DTYPES: tl.constexpr,  # of each column
    COMPUTE: tl.constexpr,
    SCALARS: tl.constexpr,
    VECTOR: tl.constexpr,  # elements for which every address is aligned
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Update BLOCK consecutive elements of one parameter and its state, in place."""
    row, chunk = located(first_ptr, span_ptr, tl.program_id(0), SPAN)
    start = chunk * BLOCK
    row_ptr = table_ptr + row * (2 + len(DTYPES))
    row_scalars = scalar_ptr + row * (HEAD + SCALARS)
    if tl.load(row_scalars) == 0:
        numel = tl.load(row_ptr)
        average = tl.load(row_scalars + 1)
        keys = values(row_scalars + 2, 2)
        common = values(row_scalars + 4, 4)
        h = values(row_scalars + HEAD, SCALARS)
        offs = start + tl.arange(0, BLOCK)
        # without a mask the accesses are 128 bits wide; only the last chunk of a tensor needs one
        if start + BLOCK <= numel:
            update_chunk(
                row_ptr,
                count_ptr,
                start,
                offs,
                None,
                average,
                keys,
                common,
                h,
                RULE,
                EMA,
                LOADS,
                STORES,
                KEYED,
                FIRST,
                DTYPES,
                COMPUTE,
                VECTOR,
            )
        else:
            update_chunk(
                row_ptr,
                count_ptr,
                start,
                offs,
                offs < numel,
                average,
                keys,
                common,
                h,
                RULE,
                EMA,
                LOADS,
                STORES,
                KEYED,
                FIRST,
                DTYPES,
                COMPUTE,
                VECTOR,
            )
