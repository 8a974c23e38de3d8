"""The update kernel, which runs every rule on every storage format."""

import triton
import triton.language as tl

from fused_optim.kernels.formats.stochastic_rounding import random_bits
from fused_optim.kernels.rules.common import cautious_decay, ema_update, preprocess_grad
from fused_optim.kernels.signatures import CommonScalars

NUM_COMMON_SCALARS = tl.constexpr(len(CommonScalars._fields))


@triton.jit
def load_address(row_ptr, i: tl.constexpr, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """Return the pointer of column ``i``, known to be aligned for VECTOR elements."""
    pointer = tl.load(row_ptr + 2 + i).to(tl.pointer_type(DTYPE))
    # the hint must sit on the pointer (on the integer, the cast would lose it), and cover the same
    # number of elements in every column, or the compiler changes layouts through shared memory
    return tl.multiple_of(pointer, VECTOR * DTYPE.primitive_bitwidth // 8)


@triton.jit
def find_row(first_ptr, span_ptr, chunk, CHUNKS_PER_SPAN: tl.constexpr):
    """Return the row that a chunk belongs to, and the chunk's index within the row."""
    row = tl.load(span_ptr + chunk // CHUNKS_PER_SPAN)
    if CHUNKS_PER_SPAN > 1:
        last = tl.load(span_ptr + chunk // CHUNKS_PER_SPAN + 1)
        # where one tensor fills the span, this loop does not run
        while row < last:
            middle = (row + last + 1) // 2
            later = tl.load(first_ptr + middle) <= chunk
            row = tl.where(later, middle, row)
            last = tl.where(later, last, middle - 1)
    return row.to(tl.int64), chunk - tl.load(first_ptr + row)


@triton.jit
def load_scalars(ptr, COUNT: tl.constexpr):
    """Load ``COUNT`` consecutive scalars."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.load(ptr + i),)
    return out


@triton.jit
def load_addresses(row_ptr, VALUE: tl.constexpr, SPEC: tl.constexpr):
    """Return the pointers of one value, one for each of its columns."""
    FIRST: tl.constexpr = SPEC.FIRST[VALUE]
    LAST: tl.constexpr = SPEC.FIRST[VALUE + 1]
    out = ()
    for i in tl.static_range(FIRST, LAST):
        out = out + (load_address(row_ptr, i, SPEC.DTYPES[i], SPEC.VECTOR),)
    return out


@triton.jit
def load_values(row_ptr, start, offs, mask, SPEC: tl.constexpr):
    """Return the pointers of every value, and the values as their codecs load them."""
    VALUES: tl.constexpr = len(SPEC.LOADS)
    pointers = ()
    values = ()
    for i in tl.static_range(VALUES):
        pointers = pointers + (load_addresses(row_ptr, i, SPEC),)
        values = values + (SPEC.LOADS[i](pointers[i], start, offs, mask, SPEC.COMPUTE),)
    return pointers, values


@triton.jit
def take_states(values, COUNT: tl.constexpr):
    """Return the states of a rule, which follow parameter and gradient."""
    out = ()
    for i in tl.static_range(2, 2 + COUNT):
        out = out + (values[i],)
    return out


@triton.jit
def count_stalled(old, new, stored, mask):
    """Count the elements of a parameter that the rule changes but that are stored unchanged."""
    stalled = (new != old) & (stored == old)
    if mask is not None:
        stalled = stalled & mask
    return tl.sum(stalled.to(tl.int32))


@triton.jit
def index_elements(row_ptr, offs, SPEC: tl.constexpr):
    """Return the index of each element in the whole parameter, of which the row may be a shard."""
    first = tl.load(row_ptr + 1)
    if SPEC.STRIDED:
        COLUMNS: tl.constexpr = len(SPEC.DTYPES)
        run = tl.load(row_ptr + 2 + COLUMNS)
        stride = tl.load(row_ptr + 3 + COLUMNS)
        return first + offs // run * stride + offs % run
    else:
        return first + offs


@triton.jit
def make_noise(common, elements, i: tl.constexpr, SPEC: tl.constexpr):
    """Return random bits for each element of value ``i``; any numbers where none are needed."""
    # before Triton 3.7 a jit function cannot return None
    if SPEC.STOCHASTIC[i]:
        return random_bits((common.key_low, common.key_high), elements, i)
    else:
        return elements


@triton.jit
def apply_rule(p, g, state, s, SPEC: tl.constexpr):
    """Return the parameter and the states after the rule, with its decay where it is allowed."""
    if SPEC.CAUTIOUS < 0:
        return SPEC.RULE(p, g, state, s)
    else:
        # static_range needs a constexpr: a field of SPEC becomes one by this assignment
        COUNT: tl.constexpr = SPEC.NUM_SCALARS
        DECAY: tl.constexpr = SPEC.CAUTIOUS
        others = ()
        for i in tl.static_range(COUNT):
            if i == DECAY:
                others = others + (s[i] * 0.0,)
            else:
                others = others + (s[i],)
        new, state = SPEC.RULE(p, g, state, others)
        return cautious_decay(p, new, s[DECAY]), state


@triton.jit
def update_block(
    row_ptr, start, offs, numel, common, scalars, FULL: tl.constexpr, SPEC: tl.constexpr
):
    """Load a block by the codecs, run the rule, store; return the number of stalled elements."""
    VALUES: tl.constexpr = len(SPEC.LOADS)
    STATES: tl.constexpr = VALUES - 2 - SPEC.EMA
    # without a mask the accesses are 128 bits wide; only the last block of a tensor needs one
    if FULL:
        mask = None
    else:
        mask = offs < numel
    pointers, values = load_values(row_ptr, start, offs, mask, SPEC)
    g = preprocess_grad(values[1], values[0], common)
    p, state = apply_rule(values[0], g, take_states(values, STATES), scalars, SPEC)
    if SPEC.EMA:
        state = state + (ema_update(values[VALUES - 1], p, common.ema_weight),)
    elements = index_elements(row_ptr, offs, SPEC)
    noise = make_noise(common, elements, 0, SPEC)
    stored = SPEC.STORES[0](pointers[0], start, offs, mask, p, noise)
    for i in tl.static_range(2, VALUES):  # the second value is the gradient, which is not stored
        noise = make_noise(common, elements, i, SPEC)
        SPEC.STORES[i](pointers[i], start, offs, mask, state[i - 2], noise)
    stalled = 0
    if SPEC.COUNT_STALLED:
        stalled = count_stalled(values[0], p, stored, mask)
    return stalled


@triton.jit
def update(
    table_ptr,  # int64 [rows, 2 + columns (+ 2)]: numel, offset in the whole parameter, column
    # addresses; if STRIDED, number of consecutive elements there, and the stride of such runs
    first_ptr,  # int64 [rows + 1]: the first chunk of each row
    span_ptr,  # int32 [spans + 1]: the row of the first chunk of each span, and the last row
    scalar_ptr,  # COMPUTE [rows, NUM_COMMON_SCALARS + NUM_SCALARS]: CommonScalars, then the rule's
    count_ptr,  # int32 [grid], written: number of stalled elements; None without COUNT_STALLED
    SPEC: tl.constexpr,  # UpdateSpec
):
    """Update CHUNK consecutive elements of one parameter and its state, in place."""
    BLOCK: tl.constexpr = SPEC.BLOCK
    COLUMNS: tl.constexpr = len(SPEC.DTYPES)
    row, chunk = find_row(first_ptr, span_ptr, tl.program_id(0), SPEC.CHUNKS_PER_SPAN)
    start = chunk * SPEC.CHUNK
    row_ptr = table_ptr + row * (2 + COLUMNS + 2 * SPEC.STRIDED)
    row_scalars = scalar_ptr + row * (NUM_COMMON_SCALARS + SPEC.NUM_SCALARS)
    common = CommonScalars(*load_scalars(row_scalars, NUM_COMMON_SCALARS))
    if common.skip == 0:
        numel = tl.load(row_ptr)
        s = load_scalars(row_scalars + NUM_COMMON_SCALARS, SPEC.NUM_SCALARS)
        stalled = 0
        if SPEC.CHUNK == BLOCK:
            # shared by both branches: with offsets formed in each, ptxas spills registers
            offs = start + tl.arange(0, BLOCK)
            if start + BLOCK <= numel:
                stalled = update_block(row_ptr, start, offs, numel, common, s, True, SPEC)
            else:
                stalled = update_block(row_ptr, start, offs, numel, common, s, False, SPEC)
        else:
            end = tl.minimum(start + SPEC.CHUNK, numel)
            tail = end - (end - start) % BLOCK
            for first in range(start, tail, BLOCK):
                offs = first + tl.arange(0, BLOCK)
                stalled += update_block(row_ptr, first, offs, numel, common, s, True, SPEC)
            if tail < end:
                offs = tail + tl.arange(0, BLOCK)
                stalled += update_block(row_ptr, tail, offs, numel, common, s, False, SPEC)
        if SPEC.COUNT_STALLED:
            tl.store(count_ptr + tl.program_id(0), stalled)
