"""The kernel that forms the scalars of every row: norm, clip factor, skip, bias corrections."""

import triton
import triton.language as tl

from fused_optim.kernels.formats.stochastic_rounding import make_row_keys
from fused_optim.kernels.rules.common import clip_factor, sqrt_rn
from fused_optim.kernels.signatures import CommonOptions, CommonScalars
from fused_optim.kernels.update import NUM_COMMON_SCALARS, load_scalars

NUM_COMMON_OPTIONS = tl.constexpr(len(CommonOptions._fields))


@triton.jit
def reduce_partials(partial_ptr, partials, MAX_PARTIALS: tl.constexpr):
    """Return the norm over all partial sums, and True if any gradient was Inf or NaN."""
    i = tl.arange(0, MAX_PARTIALS)
    squares = tl.zeros((MAX_PARTIALS,), tl.float64)
    bad = tl.zeros((MAX_PARTIALS,), tl.float64)
    for first in range(0, partials, MAX_PARTIALS):
        live = first + i < partials
        squares += tl.load(partial_ptr + 2 * (first + i), mask=live, other=0.0)
        bad += tl.load(partial_ptr + 2 * (first + i) + 1, mask=live, other=0.0)
    return sqrt_rn(tl.sum(squares)), tl.sum(bad) != 0


@triton.jit
def gather_options(option_ptr, group, live, COUNT: tl.constexpr):
    """Load COUNT consecutive options of the group of each row, as blocks of float64."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.load(option_ptr + i + group, mask=live, other=0.0),)
    return out


@triton.jit
def load_scalar_state(table_ptr, rows, live, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """Return the pointers of the rows' 0-dim states, and their values as float64."""
    pointers = ()
    values = ()
    for i in tl.static_range(COUNT):
        address = tl.load(table_ptr + rows.to(tl.int64) * COUNT + i, mask=live, other=0)
        pointers = pointers + (address.to(tl.pointer_type(DTYPE)),)
        values = values + (tl.load(pointers[i], mask=live, other=0.0).to(tl.float64),)
    return pointers, values


@triton.jit
def advance_and_form_scalars(hparams, state_ptr, rows, live, moves, SPEC: tl.constexpr):
    """Advance the 0-dim states of rows that are not skipped; return the step and the scalars."""
    COUNT: tl.constexpr = SPEC.NUM_SCALAR_STATE
    DTYPE: tl.constexpr = SPEC.SCALAR_STATE_DTYPE
    if COUNT == 0:
        step = hparams[0] * 0.0 + 1.0
        return step, SPEC.SCALARS_FN(hparams, step)
    else:
        pointers, old = load_scalar_state(state_ptr, rows, live, COUNT, DTYPE)
        step = old[0]
        if SPEC.ADVANCES:
            step = step + 1.0
            tl.store(pointers[0], step.to(DTYPE), mask=moves)
        if COUNT == 1:
            return step, SPEC.SCALARS_FN(hparams, step)
        else:
            running = ()
            for i in tl.static_range(1, COUNT):
                running = running + (old[i],)
            running, s = SPEC.SCALARS_FN(hparams, step, running)
            for i in tl.static_range(1, COUNT):
                tl.store(pointers[i], running[i - 1].to(DTYPE), mask=moves)
            return step, s


@triton.jit(do_not_specialize=["partials", "n_rows"])
def prepare(
    partial_ptr,  # float64 [partials, 2] from norm, or None if nothing needs the norm
    state_ptr,  # int64 [rows, NUM_SCALAR_STATE]: addresses of the 0-dim states, or None
    group_ptr,  # int32 [rows, 2]: the row's group, and the index of its parameter
    option_ptr,  # float64 [groups, NUM_COMMON_OPTIONS + NUM_HPARAMS]: common options, hparams
    scale_ptr,  # float32 [1]: the factor by which the loss was scaled, or None
    found_inf_ptr,  # float32 [1]: not 0 if the step is to be skipped, or None
    scalar_ptr,  # COMPUTE [rows, NUM_COMMON_SCALARS + NUM_SCALARS], written: see update
    report_ptr,  # float64 [3], written: norm, clip factor, skipped; or None
    partials,
    n_rows,
    SPEC: tl.constexpr,  # PrepareSpec
):
    """Prepare ROWS rows; every program finishes the norm itself, which saves a launch."""
    rows = tl.program_id(0) * SPEC.ROWS + tl.arange(0, SPEC.ROWS)
    live = rows < n_rows
    width: tl.constexpr = NUM_COMMON_OPTIONS + SPEC.NUM_HPARAMS
    group = tl.load(group_ptr + 2 * rows, mask=live, other=0) * width
    options = CommonOptions(*gather_options(option_ptr, group, live, NUM_COMMON_OPTIONS))
    # without partial sums no bound is finite and no group skips: the norm stays unknown
    norm, bad = tl.cast(float("nan"), tl.float64), False
    if partial_ptr is not None:
        norm, bad = reduce_partials(partial_ptr, partials, SPEC.MAX_PARTIALS)
    unscale = tl.cast(1.0, tl.float64)
    if scale_ptr is not None:
        unscale = unscale / tl.load(scale_ptr).to(tl.float64)
    found_inf = 0.0
    if found_inf_ptr is not None:
        found_inf = tl.where(tl.load(found_inf_ptr) != 0, 1.0, 0.0)
    norm = norm * unscale
    if report_ptr is not None:
        if tl.program_id(0) == 0:
            # the bound, and whether any group skips, are the same in every group
            first = CommonOptions(*load_scalars(option_ptr, NUM_COMMON_OPTIONS))
            tl.store(report_ptr, norm)
            tl.store(report_ptr + 1, clip_factor(norm, first.max_grad_norm))
            tl.store(report_ptr + 2, tl.where(bad, first.any_skips, 0.0) + found_inf)
    hparams = gather_options(option_ptr + NUM_COMMON_OPTIONS, group, live, SPEC.NUM_HPARAMS)
    skip = tl.where(bad, options.skips, 0.0) + found_inf
    moves = live & (skip == 0)
    step, s = advance_and_form_scalars(hparams, state_ptr, rows, live, moves, SPEC)
    index = tl.load(group_ptr + 2 * rows + 1, mask=live, other=0)
    key_low, key_high = make_row_keys(options.seed, step, index)
    common = CommonScalars(
        skip=skip,
        ema_weight=tl.where(step == 1, 1.0, 1.0 - options.ema_decay),
        key_low=key_low,
        key_high=key_high,
        factor=options.grad_sign * (clip_factor(norm, options.max_grad_norm) * unscale),
        max_grad_value=options.max_grad_value,
        l2=options.l2,
        l1=options.l1,
    )
    base = scalar_ptr + rows.to(tl.int64) * (NUM_COMMON_SCALARS + SPEC.NUM_SCALARS)
    for i in tl.static_range(NUM_COMMON_SCALARS):
        tl.store(base + i, common[i].to(SPEC.COMPUTE), mask=live)
    # static_range needs a constexpr: a field of SPEC becomes one by this assignment
    NUM_ELEMENTWISE: tl.constexpr = SPEC.NUM_ELEMENTWISE
    for i in tl.static_range(NUM_ELEMENTWISE):
        tl.store(base + NUM_COMMON_SCALARS + i, s[i].to(SPEC.COMPUTE), mask=live)
