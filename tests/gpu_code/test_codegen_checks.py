"""Checks of the static facts, each on code that it must refuse.

Also tried by hand in the kernels, and refused on targets of NVIDIA and AMD: a mask on the full
chunks of update and norm, no mask anywhere, no alignment hint, the hint on the integer instead of
the pointer, ``tl.sqrt`` instead of ``sqrt_rn``, fusion left on (in prepare too), a store of the
gradient, a state that is not stored, chunks of 4096. On NVIDIA only, where they matter: ``/``
instead of ``div_rn``, and hints of 16 bytes for every column.
"""

import pytest
import torch
import triton
import triton.language as tl

from ci.codegen.amd import Amd
from ci.codegen.builds import TARGETS, compiled, make_bucket_key
from ci.codegen.checks import complaints
from ci.codegen.facts import Facts
from ci.codegen.rules import RULES
from fused_optim.backends.constexprs import constants
from fused_optim.backends.triton import GEOMETRY, resolve

NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
AMD = [target for target in TARGETS if target.startswith("gfx")]
KIND = make_bucket_key(RULES["adam"], torch.float32)


@triton.jit
def approximate_root(p, g, state, h):
    """Compute Adagrad with the hardware's approximate root."""
    (sum,) = state
    step_size, eps = h
    sum = sum + g * g
    return p - step_size * tl.div_rn(g, tl.sqrt(sum) + eps), (sum,)


@triton.jit
def approximate_division(p, g, state, h):
    """Compute Adagrad with the hardware's approximate division."""
    (sum,) = state
    step_size, eps = h
    sum = sum + g * g
    return p - step_size * (g / (tl.sqrt_rn(sum) + eps)), (sum,)


@triton.jit
def contracted(p, g, state, h):
    """Compute Adagrad with one operation contracted by hand."""
    (sum,) = state
    step_size, eps = h
    sum = tl.fma(g, g, sum)
    return p - step_size * tl.div_rn(g, tl.sqrt_rn(sum) + eps), (sum,)


@triton.jit
def load_twice(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load one column twice, so that the compiler cannot merge the loads."""
    first = tl.load(pointers[0] + offs, mask=mask, volatile=True)
    second = tl.load(pointers[0] + offs, mask=mask, cache_modifier=".cg")
    return ((first + second) / 2).to(COMPUTE)


@triton.jit
def store_twice(pointers, start, offs, mask, value, noise):
    """Store one column twice, with different values."""
    tl.store(pointers[0] + offs, value, mask=mask)
    tl.debug_barrier()
    tl.store(pointers[0] + offs, value + 1, mask=mask)


def refused(kernel, target, kind=KIND):
    """Return the names of the checks that refuse a kernel."""
    facts = Facts(kernel, "update", target, kind)
    return {complaint.partition(":")[0] for complaint in complaints(facts)}


@pytest.mark.parametrize("target", [NVIDIA[0], NVIDIA[-1], *AMD])
def test_contraction_by_the_compiler_is_seen(target):
    kernel = compiled(KIND, "update", target, {"enable_fp_fusion": True})
    assert refused(kernel, target) == {"rounds_once"}


@pytest.mark.parametrize("target", ["sm_90", "gfx942", "gfx1100"])
@pytest.mark.parametrize("rule", [approximate_root, approximate_division, contracted])
def test_operations_that_do_not_round_once_are_seen(rule, target):
    kind = make_bucket_key(RULES["adagrad"], torch.float32)
    # on AMD the compiler generates the same division for / and for div_rn
    wrong = set() if rule is approximate_division and target in AMD else {"rounds_once"}
    assert refused(compiled(kind, "update", target, RULE=rule), target, kind) == wrong


@pytest.mark.parametrize(
    ("operands", "fuses"),
    [
        ("v2, s3, neg(0) op_sel_hi:[1,0,0]", False),
        ("v2, -1.0, v3 op_sel_hi:[0,1,1]", False),
        ("1.0, v2, v3", False),
        ("v2, s3, v4 op_sel_hi:[1,0,0]", True),
        ("v2, s3, 1.0", True),
        ("v2, s3, 0", True),  # not exact where the product is -0
    ],
)
def test_mixed_precision_of_amd(operands, fuses):
    """Check that an fma that only multiplies or only adds counts as one rounding."""
    code = Amd(f"update:\n\tv_fma_mix_f32 v1, {operands}\n\ts_endpgm\n")
    assert bool(code.inexact) == fuses


@pytest.mark.parametrize("target", ["sm_90", "sm_100", "gfx90a", "gfx1100"])
def test_a_lost_alignment_hint_is_seen(target):
    assert "is_wide" in refused(compiled(KIND, "update", target, VECTOR=1), target)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_wide_access_of_unaligned_rows_is_seen(target):
    kernel = compiled(KIND, "update", target)
    assert refused(kernel, target, KIND._replace(aligned=False)) == {"is_element_wise"}


# AMD's compiler makes one load of the two, whatever they are
@pytest.mark.parametrize("target", ["sm_90", "sm_120"])
def test_a_column_that_is_read_twice_is_seen(target):
    loads = list(resolve(constants(KIND, GEOMETRY)["update"])["SPEC"].LOADS)
    loads[2] = load_twice
    found = refused(compiled(KIND, "update", target, LOADS=tuple(loads)), target)
    assert found >= {"moves_each_column_once", "moves_the_floor"}


@pytest.mark.parametrize("target", ["sm_90", "gfx90a", "gfx1100"])
def test_a_column_that_is_written_twice_is_seen(target):
    stores = list(resolve(constants(KIND, GEOMETRY)["update"])["SPEC"].STORES)
    stores[2] = store_twice
    found = refused(compiled(KIND, "update", target, STORES=tuple(stores)), target)
    assert found >= {"moves_each_column_once", "moves_the_floor"}


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_hints_of_one_number_of_bytes_are_seen(target):
    """Guard against one layout per width, where threads exchange elements."""
    kind = make_bucket_key(RULES["adam"], torch.bfloat16, torch.bfloat16, torch.float32)
    found = refused(compiled(kind, "update", target, VECTOR=8), target, kind)
    assert "needs_no_shared_memory" in found


def test_spilled_registers_are_seen():
    kernel = compiled(KIND, "update", "sm_90", {"maxnreg": 24})
    assert refused(kernel, "sm_90") == {"stays_in_registers"}
    kind = make_bucket_key(RULES["adan"], torch.float64)
    kernel = compiled(kind, "update", "gfx942", {"waves_per_eu": 8, "num_warps": 1})
    assert "stays_in_registers" in refused(kernel, "gfx942", kind)


def test_many_registers_are_seen():
    kernel = compiled(KIND, "update", "sm_90", {"num_warps": 1, "maxnreg": 255})
    assert "has_few_registers" in refused(kernel, "sm_90")
