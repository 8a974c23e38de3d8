"""Compilation of the kernels: optional arguments, and coverage of the selected builds.

Triton's interpreter accepts code that the compiler refuses, such as an annotation in a jit
function. ``test_codegen.py`` checks the compiled code of the selected builds.
"""

from itertools import product

import pytest
import torch
from gpu_code.selection import (
    MAKERS,
    aligned_builds,
    few_builds,
    other_builds,
    unaligned_builds,
)
from helpers.versions import NEEDS_AMD_LINKER

from ci.codegen.builds import FORMATS, KERNELS, TARGETS, compiled, make_bucket_key
from ci.codegen.rules import RULES
from fused_optim.backends.constexprs import constants
from fused_optim.backends.triton import GEOMETRY

OPTIONAL = ("partial_ptr", "scale_ptr", "found_inf_ptr", "report_ptr")


@pytest.mark.parametrize("target", TARGETS)
def test_prepare_compiles_without_what_may_be_missing(target):
    kind = make_bucket_key(RULES["adam"], torch.float32)
    compiled(kind, "prepare", target, **dict.fromkeys(OPTIONAL))


def test_prepare_compiles_with_some_of_it():
    kind = make_bucket_key(RULES["adam"], torch.float32)
    for missing in (OPTIONAL[:1], OPTIONAL[1:]):
        compiled(kind, "prepare", "sm_90", **dict.fromkeys(missing))


@NEEDS_AMD_LINKER
@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("gfx")])
def test_the_assembly_of_amd_is_linked(target):
    assert compiled(make_bucket_key(RULES["adam"], torch.float32), "update", target).asm["hsaco"]


def test_the_selected_builds_have_everything():
    """Check that every rule, format and target is built, each format for both makers."""
    assert sorted(target for targets in MAKERS for target in targets) == sorted(TARGETS)
    maker = {target: i for i, targets in enumerate(MAKERS) for target in targets}
    aligned, unaligned = aligned_builds(), unaligned_builds()
    assert {build.rule for build in aligned} == set(RULES)
    assert {(b.format, maker[b.target]) for b in aligned} == set(product(FORMATS, (0, 1)))
    for builds in (aligned, unaligned):
        for axis, every in {"format": FORMATS, "target": TARGETS}.items():
            assert {getattr(build, axis) for build in builds} == set(every)


def test_few_builds_have_everything_once():
    few = few_builds()
    updates = [build for build in few if build.kernel == "update"]
    for axis, every in {"rule": RULES, "format": FORMATS, "target": TARGETS}.items():
        assert {getattr(build, axis) for build in updates} == set(every)
    assert len(updates) == max(len(RULES), len(FORMATS), len(TARGETS))
    assert {build.kernel for build in few} == set(KERNELS)
    prepares = [build for build in few if build.kernel == "prepare"]
    assert {build.target for build in prepares} == set(TARGETS)
    formed = [RULES[build.rule].form_scalars for build in prepares]
    assert sorted(map(id, formed)) == sorted({id(rule.form_scalars) for rule in RULES.values()})


def test_every_kernel_is_built_for_every_target():
    kernels = {
        name
        for rule in RULES.values()
        for name in constants(make_bucket_key(rule, torch.float32), GEOMETRY)
    }
    built = {(build.kernel, build.target) for build in aligned_builds() + other_builds()}
    assert built >= set(product(kernels - {"finalize"}, TARGETS))
    # finalize is that of every target: it adds partial sums, and stores no vectors
    assert {targets[0] for targets in MAKERS} == {t for kernel, t in built if kernel == "finalize"}
    prepares = [RULES[build.rule] for build in other_builds() if build.kernel == "prepare"]
    assert {rule.form_scalars for rule in prepares} == {r.form_scalars for r in RULES.values()}
    reduced = {(build.kernel, build.format) for build in other_builds()}
    assert reduced >= {("reduce", name) for name in FORMATS}
