"""Compile the kernels for any target, without a device, as the Triton backend launches them.

Which targets, formats and combinations of them the tests of the compiled code go through is said
here and nowhere else.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton
from helpers.models import FORMATS as KEPT
from helpers.models import RULES
from helpers.versions import NO_AMD_LINKER
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from fused_optim.backends.base import BucketKey
from fused_optim.backends.constexprs import argument_types, constants
from fused_optim.backends.triton import GEOMETRY, KERNELS, resolve
from fused_optim.backends.triton import options as launch_options
from fused_optim.formats.registry import PLAIN, formats_for
from fused_optim.rules.common import Rule

# benchmarks/, beside tests/, has what reads the compiled code
sys.path.append(str(Path(__file__).parents[2]))

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}


def make_bucket_key(rule: Rule, *dtypes: torch.dtype, aligned: bool = True) -> BucketKey:
    """Rows of ``rule`` with the given dtypes of parameter, gradient and every state."""
    param, grad, state = dtypes * 3 if len(dtypes) == 1 else dtypes
    columns = (param, grad, *[state] * len(rule.state_keys))
    counter = torch.float32 if rule.scalar_state else None
    device = torch.device("cuda")
    return BucketKey("triton", device, rule, (PLAIN,) * len(columns), columns, counter, aligned)


def plain(*dtypes: torch.dtype) -> Callable[[Rule], BucketKey]:
    """Every value in one column, of these dtypes: see :func:`kind_of`."""
    return lambda rule: make_bucket_key(rule, *dtypes)


def ema_update(*dtypes: torch.dtype) -> Callable[[Rule], BucketKey]:
    """The same with the average of the parameter in a float32 column at the end."""

    def averaged_kind(rule: Rule) -> BucketKey:
        kind = make_bucket_key(rule, *dtypes)
        codecs, columns = (*kind.codecs, PLAIN), (*kind.dtypes, torch.float32)
        return kind._replace(codecs=codecs, dtypes=columns, ema=True)

    return averaged_kind


def kept(param: torch.dtype, weights: str, states: str) -> Callable[[Rule], BucketKey]:
    """Formats by their names in fused_optim/formats.py, in tensors that are not small."""

    def kept_kind(rule: Rule) -> BucketKey:
        codecs = formats_for(rule, param, False, weights, states)
        columns = [column for codec in codecs for column in codec.columns]
        dtypes = tuple(column.dtype or param for column in columns)
        return make_bucket_key(rule, param)._replace(codecs=codecs, dtypes=dtypes)

    return kept_kind


# storage formats: a name, and what rows of a rule are like
FORMATS: dict[str, Callable[[Rule], BucketKey]] = {
    "fp32": plain(torch.float32),
    "bf16": plain(torch.bfloat16),
    "fp16": plain(torch.float16),
    "fp64": plain(torch.float64),
    "bf16-fp32-states": plain(torch.bfloat16, torch.bfloat16, torch.float32),
    "fp32-bf16-grads": plain(torch.float32, torch.bfloat16, torch.float32),
    "fp32-ema": ema_update(torch.float32),
    "fp32-int8": kept(torch.float32, "plain", "int8"),
}
KEPT_NAMES = {"-".join(names.values()): names for names in KEPT[1:]}
FORMATS |= {name: kept(torch.bfloat16, **names) for name, names in KEPT_NAMES.items()}
# those that differ from the first in their dtypes alone
DTYPES = [name for name in FORMATS if "int8" not in name and name not in KEPT_NAMES][1:]
CODECS = [name for name in FORMATS if name not in DTYPES]


class Build(NamedTuple):
    """One way to compile a kernel."""

    rule: str
    format: str
    target: str
    aligned: bool = True
    kernel: str = "update"

    @property
    def kind(self) -> BucketKey:
        """What the rows have in common."""
        return FORMATS[self.format](RULES[self.rule])._replace(aligned=self.aligned)

    def __str__(self) -> str:
        alignment = () if self.aligned else ("unaligned",)
        kernel = () if self.kernel == "update" else (self.kernel,)
        return "-".join((*kernel, self.rule, self.format, self.target, *alignment))


def _signature(kind: BucketKey, name: str) -> dict[str, str]:
    """The types of the arguments that are not constexpr."""
    types = argument_types(kind.compute)
    return {
        parameter.name: types[parameter.name]
        for parameter in KERNELS[name].params
        if not parameter.is_constexpr
    }


def changed(kind: BucketKey, name: str, changes: dict[str, object]) -> dict[str, object]:
    """The constexpr arguments of a kernel, some of them replaced."""
    found = resolve(constants(kind, GEOMETRY)[name])
    if "SPEC" in found and changes:
        return {"SPEC": found["SPEC"]._replace(**changes)}
    return found | changes


def compiled(
    kind: BucketKey,
    name: str,
    target: str,
    options: dict[str, object] | None = None,
    **changes: object,
) -> CompiledKernel:
    """The kernel ``name`` for rows of ``kind``; ``changes`` are constexpr that are to differ."""
    signature, consts = _signature(kind, name), changed(kind, name, changes)
    if name == "prepare" and kind.scalar_state_dtype is None:
        consts = {"state_ptr": None, **consts}
    if name == "update" and not kind.count_stalled:
        consts = {"count_ptr": None, **consts}
    # an argument that is None is one too
    signature |= dict.fromkeys(consts, "constexpr")
    source = ASTSource(fn=KERNELS[name], signature=signature, constexprs=consts)
    ours = launch_options(kind, name, TARGETS[target])
    with pytest.MonkeyPatch.context() as patched:
        if NO_AMD_LINKER:  # as far as the assembly, which is what the tests read
            linker = "triton.backends.amd.compiler.HIPBackend.path_to_rocm_lld"
            patched.setattr(linker, staticmethod(lambda: shutil.which("true")))
        return triton.compile(source, target=TARGETS[target], options=ours | (options or {}))


@cache
def made(build: Build) -> CompiledKernel:
    """The compiled kernel, once a process."""
    return compiled(build.kind, build.kernel, build.target)


# What the sweep over everything (python -m benchmarks.kernels --all) once found: ptxas spilled to
# need fewer registers than it may take; the reader of AMD's assembly took the carry of an addition
# for an address, and overlooked the second instruction of a line; the most registers on AMD.
FOUND = [
    Build("sgd_nesterov", "master-fp32", "sm_100"),
    Build("radam", "fp32-int8", "sm_80", False),
    Build("lars", "split-bf16", "sm_80", False, "reduce"),
    Build("lamb", "split-bf16", "sm_100", False, "reduce"),
    Build("adan", "master-fp32", "gfx90a"),
    Build("asgd", "fp64", "gfx1100"),
    Build("rmsprop_centered_momentum", "fp32-ema", "gfx1100"),
]


def _pairs() -> Iterator[Build]:
    """Every rule in every format that is not only another dtype, and on every target."""
    rules, targets = list(RULES), list(TARGETS)
    for i, rule in enumerate(rules):
        turn = len(targets) - len(CODECS)
        dtypes = [DTYPES[(turn * i + k) % len(DTYPES)] for k in range(turn)]
        for j, name in enumerate([*CODECS, *dtypes]):
            yield Build(rule, name, targets[(i + j) % len(targets)])


def _found(kernel: str, aligned: bool) -> list[Build]:
    return [one for one in FOUND if (one.kernel, one.aligned) == (kernel, aligned)]


def few_builds() -> list[Build]:
    """Every rule, format and target once, and every function and target of the other kernels."""
    formats, targets = list(FORMATS), list(TARGETS)
    found, formed = [], set()
    for i, rule in enumerate(RULES):
        target = targets[i % len(targets)]
        # the reader of AMD's assembly cannot follow some kernels of unaligned rows of Triton 3.5
        aligned = i % 2 == 0 or target.startswith("gfx")
        turn = Build(rule, formats[i % len(formats)], target, aligned)
        found.append(turn)
        if RULES[rule].form_scalars not in formed:  # rules share them
            formed.add(RULES[rule].form_scalars)
            found.append(turn._replace(format="fp32", kernel="prepare"))
        if RULES[rule].reduction is not None:
            found += [turn._replace(kernel=kernel) for kernel in ("reduce", "finalize")]
    for i, name in enumerate(("fp32", "bf16", "fp16", "fp64")):
        found.append(Build("adam", name, targets[3 * i % len(targets)], True, "norm"))
    return found


def aligned_builds(every: bool = False) -> list[Build]:
    """The update kernel where addresses are aligned; ``every`` rule, format and target, or some."""
    if every:
        return [Build(*one) for one in product(RULES, FORMATS, TARGETS)]
    found = list(_pairs())
    seen = {(build.format, build.target) for build in found}
    found += [
        Build("adam", name, target)
        for name in FORMATS
        for target in TARGETS
        if (name, target) not in seen
    ]
    return sorted({*found, *_found("update", aligned=True)})


def unaligned_builds(every: bool = False) -> list[Build]:
    """The same with addresses that are only element-aligned: each rule, format and target."""
    if every:
        return [build._replace(aligned=False) for build in aligned_builds(every)]
    rules, targets = list(RULES), list(TARGETS)
    pairs = [(name, targets[(i + 3 * k) % 9]) for i, name in enumerate(FORMATS) for k in range(3)]
    found = [
        Build(rules[i % len(rules)], name, target, aligned=False)
        for i, (name, target) in enumerate(pairs)
    ]
    return sorted({*found, *_found("update", aligned=False)})


def _others() -> Iterator[Build]:
    """Some of every other kernel, on every target."""
    targets = list(TARGETS)
    for i, rule in enumerate(RULES):
        turn = targets[i % len(targets) :] + targets[: i % len(targets)]
        # from NVIDIA's to AMD's and back
        yield Build(rule, "fp32", turn[0 if i % 2 else len(targets) // 2], kernel="prepare")
        if RULES[rule].reduction is not None:
            for j, name in enumerate(FORMATS):  # there are more of them than targets
                yield Build(rule, name, turn[j % len(turn)], kernel="reduce")
            yield Build(rule, "bf16", turn[3], False, "reduce")
    measured = [rule for rule in RULES if RULES[rule].reduction is not None]
    for i, target in enumerate(targets):
        yield Build(measured[i % len(measured)], "fp32", target, kernel="finalize")
    kinds = {name: Build("adam", name, "").kind for name in FORMATS}
    for target in targets:
        yield Build("adam", "fp64", target, kernel="prepare")
    # the norm reads one column, in vectors of the widest
    norms = {(kind.dtypes[kind.first[1]], kind.vector): name for name, kind in kinds.items()}
    for i, (name, target) in enumerate(product(norms.values(), targets)):
        yield Build("adam", name, target, kernel="norm")
        if i % len(norms) == 0:
            yield Build("adam", name, target, False, "norm")


def other_builds(every: bool = False) -> list[Build]:
    """Some of every kernel other than the update; ``every`` one that sums over tensors."""
    if every:
        both = [*aligned_builds(every), *unaligned_builds(every)]
        sums = [one for one in both if RULES[one.rule].reduction is not None]
        return sorted({*_others(), *(one._replace(kernel="reduce") for one in sums)})
    return sorted({*_others(), *_found("reduce", aligned=False)})
