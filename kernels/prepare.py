"""What every row needs before its update: finish the norm, decide, count, form the scalars."""

import triton
import triton.language as tl

from fused_optim.kernels.formats.stochastic_rounding import make_row_keys
from fused_optim.kernels.rules.common import clip_factor, sqrt_rn
from fused_optim.kernels.update import NUM_COMMON_SCALARS


@triton.jit
def reduced(partial_ptr, partials, MAX_PARTIALS: tl.constexpr):
    """The norm over all partial sums, and whether any gradient was Inf or NaN."""
    i = tl.arange(0, MAX_PARTIALS)
    squares = tl.zeros((MAX_PARTIALS,), tl.float64)
    bad = tl.zeros((MAX_PARTIALS,), tl.float64)
    for first in range(0, partials, MAX_PARTIALS):
        live = first + i < partials
        squares += tl.load(partial_ptr + 2 * (first + i), mask=live, other=0.0)
        bad += tl.load(partial_ptr + 2 * (first + i) + 1, mask=live, other=0.0)
    return sqrt_rn(tl.sum(squares)), tl.sum(bad) != 0


@triton.jit
def gathered(hyper_ptr, group, live, COUNT: tl.constexpr):
    """Each option of the rows' groups, as a block of float64."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.load(hyper_ptr + i + group, mask=live, other=0.0),)
    return out


@triton.jit
def scalar_state(table_ptr, rows, live, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """The pointers of the rows' counters, and their values as float64."""
    pointers = ()
    found = ()
    for i in tl.static_range(COUNT):
        address = tl.load(table_ptr + rows.to(tl.int64) * COUNT + i, mask=live, other=0)
        pointers = pointers + (address.to(tl.pointer_type(DTYPE)),)
        found = found + (tl.load(pointers[i], mask=live, other=0.0).to(tl.float64),)
    return pointers, found


@triton.jit
def formed(
    hyper,
    counter_ptr,
    rows,
    live,
    moves,
    SCALARS_FN: tl.constexpr,
    NUM_SCALAR_STATE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Move the counters of the rows that are not skipped, and form the scalars; step, scalars."""
    if NUM_SCALAR_STATE == 0:
        step = hyper[0] * 0.0 + 1.0
        return step, SCALARS_FN(hyper, step)
    else:
        pointers, old = scalar_state(counter_ptr, rows, live, NUM_SCALAR_STATE, DTYPE)
        step = old[0] + 1.0
        tl.store(pointers[0], step.to(DTYPE), mask=moves)
        if NUM_SCALAR_STATE == 1:
            return step, SCALARS_FN(hyper, step)
        else:
            running = ()
            for i in tl.static_range(1, NUM_SCALAR_STATE):
                running = running + (old[i],)
            running, h = SCALARS_FN(hyper, step, running)
            for i in tl.static_range(1, NUM_SCALAR_STATE):
                tl.store(pointers[i], running[i - 1].to(DTYPE), mask=moves)
            return step, h


@triton.jit(do_not_specialize=["partials", "n_rows"])
def begin(
    partial_ptr,  # float64 [partials, 2] from norm, or None: nothing needs the norm
    counter_ptr,  # int64 [rows, COUNTERS]: the addresses of each row's counters, or None
    group_ptr,  # int32 [rows, 2]: the row's group, and the index of its parameter
    hyper_ptr,  # float64 [groups, 9 + HYPERS]: the options of every rule, then those of this one
    scale_ptr,  # float32 [1]: what the loss was scaled by, or None
    found_ptr,  # float32 [1]: not 0 if the step is to be skipped, or None
    scalar_ptr,  # COMPUTE [rows, HEAD + SCALARS], written: see update
    report_ptr,  # float64 [3], written: norm, clip factor, skipped; or None
    partials,
    n_rows,
    SCALARS_FN: tl.constexpr,  # the function that forms the rule's scalars
    NUM_SCALAR_STATE: tl.constexpr,
    STEP_DTYPE: tl.constexpr,  # their dtype
    COMPUTE: tl.constexpr,
    NUM_HPARAMS: tl.constexpr,
    SCALARS: tl.constexpr,  # of a row, and how many of them the rule forms here
    NUM_ELEMENTWISE: tl.constexpr,
    MAX_PARTIALS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Prepare ROWS rows. Every program finishes the norm for itself: no other launch, no wait."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = rows < n_rows
    group = tl.load(group_ptr + 2 * rows, mask=live, other=0) * (9 + NUM_HPARAMS)
    sign, max_norm, limit, l2, l1, skips, _any_skips, ema_decay, seed = gathered(
        hyper_ptr, group, live, 9
    )
    # without partial sums no bound is finite and no group skips: the norm stays unknown
    norm, bad = tl.cast(float("nan"), tl.float64), False
    if partial_ptr is not None:
        norm, bad = reduced(partial_ptr, partials, MAX_PARTIALS)
    unscale = tl.cast(1.0, tl.float64)
    if scale_ptr is not None:
        unscale = unscale / tl.load(scale_ptr).to(tl.float64)
    found = 0.0
    if found_ptr is not None:
        found = tl.where(tl.load(found_ptr) != 0, 1.0, 0.0)
    norm = norm * unscale
    factor = sign * (clip_factor(norm, max_norm) * unscale)
    skip = tl.where(bad, skips, 0.0) + found
    if report_ptr is not None:
        if tl.program_id(0) == 0:
            tl.store(report_ptr, norm)
            tl.store(report_ptr + 1, clip_factor(norm, tl.load(hyper_ptr + 1)))
            tl.store(report_ptr + 2, tl.where(bad, tl.load(hyper_ptr + 6), 0.0) + found)
    hyper = gathered(hyper_ptr + 9, group, live, NUM_HPARAMS)
    moves = live & (skip == 0)
    step, h = formed(hyper, counter_ptr, rows, live, moves, SCALARS_FN, NUM_SCALAR_STATE, STEP_DTYPE)
    average = tl.where(step == 1, 1.0, 1.0 - ema_decay)
    index = tl.load(group_ptr + 2 * rows + 1, mask=live, other=0)
    first, second = make_row_keys(seed, step, index)
    scalars = (skip, average, first, second, factor, limit, l2, l1) + h
    base = scalar_ptr + rows.to(tl.int64) * (NUM_COMMON_SCALARS + SCALARS)
    for i in tl.static_range(NUM_COMMON_SCALARS + NUM_ELEMENTWISE):
        tl.store(base + i, scalars[i].to(COMPUTE), mask=live)
