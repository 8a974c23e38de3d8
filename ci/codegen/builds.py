"""Compilation of the kernels for any target, without a device, as the Triton backend launches them.

``TARGETS`` and ``FORMATS`` are the targets and the storage formats of the table and of the tests.
"""

import shutil
from collections.abc import Callable
from functools import cache
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ci.codegen.linker import has_amd_linker
from ci.codegen.rules import FORMAT_PAIRS, RULES
from fused_optim.backends.base import BucketKey
from fused_optim.backends.constexprs import argument_types, constants
from fused_optim.backends.triton import GEOMETRY, KERNELS, resolve
from fused_optim.backends.triton import options as launch_options
from fused_optim.formats.registry import PLAIN, formats_for
from fused_optim.rules.common import Rule

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
    """Return the kind of rows of ``rule`` with these dtypes of parameter, gradient and states."""
    param, grad, state = dtypes * 3 if len(dtypes) == 1 else dtypes
    columns = (param, grad, *[state] * len(rule.state_keys))
    counter = torch.float32 if rule.scalar_state else None
    device = torch.device("cuda")
    return BucketKey("triton", device, rule, (PLAIN,) * len(columns), columns, counter, aligned)


def plain(*dtypes: torch.dtype) -> Callable[[Rule], BucketKey]:
    """Return a function that makes a kind with one column per value.

    Args:
        dtypes: one dtype for all values, or the dtypes of parameter, gradient and states.
    """
    return lambda rule: make_bucket_key(rule, *dtypes)


def with_ema(*dtypes: torch.dtype) -> Callable[[Rule], BucketKey]:
    """Return a function like :func:`plain`, with a last float32 column for the EMA."""

    def averaged_kind(rule: Rule) -> BucketKey:
        kind = make_bucket_key(rule, *dtypes)
        codecs, columns = (*kind.codecs, PLAIN), (*kind.dtypes, torch.float32)
        return kind._replace(codecs=codecs, dtypes=columns, ema=True)

    return averaged_kind


def kept(param: torch.dtype, weights: str, states: str) -> Callable[[Rule], BucketKey]:
    """Return a function that makes a kind with formats, named as in fused_optim/formats."""

    def kept_kind(rule: Rule) -> BucketKey:
        codecs = formats_for(rule, param, False, weights, states)
        columns = [column for codec in codecs for column in codec.columns]
        dtypes = tuple(column.dtype or param for column in columns)
        return make_bucket_key(rule, param)._replace(codecs=codecs, dtypes=dtypes)

    return kept_kind


# storage formats by name; the function makes the kind of a rule's rows
FORMATS: dict[str, Callable[[Rule], BucketKey]] = {
    "fp32": plain(torch.float32),
    "bf16": plain(torch.bfloat16),
    "fp16": plain(torch.float16),
    "fp64": plain(torch.float64),
    "bf16-fp32-states": plain(torch.bfloat16, torch.bfloat16, torch.float32),
    "fp32-bf16-grads": plain(torch.float32, torch.bfloat16, torch.float32),
    "fp32-ema": with_ema(torch.float32),
    "fp32-int8": kept(torch.float32, "plain", "int8"),
}
KEPT_NAMES = {"-".join(names.values()): names for names in FORMAT_PAIRS[1:]}
FORMATS |= {name: kept(torch.bfloat16, **names) for name, names in KEPT_NAMES.items()}


class Build(NamedTuple):
    """A kernel to compile: rule, format and target by name, alignment of the rows, kernel."""

    rule: str
    format: str
    target: str
    aligned: bool = True
    kernel: str = "update"

    @property
    def kind(self) -> BucketKey:
        """Return the kind of the rows."""
        return FORMATS[self.format](RULES[self.rule])._replace(aligned=self.aligned)

    def __str__(self) -> str:
        alignment = () if self.aligned else ("unaligned",)
        kernel = () if self.kernel == "update" else (self.kernel,)
        return "-".join((*kernel, self.rule, self.format, self.target, *alignment))


def _signature(kind: BucketKey, name: str) -> dict[str, str]:
    """Return the types of the arguments that are not constexpr, by name."""
    types = argument_types(kind.compute)
    return {
        parameter.name: types[parameter.name]
        for parameter in KERNELS[name].params
        if not parameter.is_constexpr
    }


def changed(kind: BucketKey, name: str, changes: dict[str, object]) -> dict[str, object]:
    """Return the constexpr arguments of a kernel, fields of its spec or arguments replaced."""
    found = resolve(constants(kind, GEOMETRY)[name])
    if "SPEC" in found:
        fields = {n: value for n, value in changes.items() if n in found["SPEC"]._fields}
        found["SPEC"] = found["SPEC"]._replace(**fields)
        changes = {n: value for n, value in changes.items() if n not in fields}
    return found | changes


def compiled(
    kind: BucketKey,
    name: str,
    target: str,
    options: dict[str, object] | None = None,
    **changes: object,
) -> CompiledKernel:
    """Compile the kernel ``name`` for ``kind``; ``changes`` replaces constexpr arguments."""
    signature, consts = _signature(kind, name), changed(kind, name, changes)
    if name == "prepare" and kind.scalar_state_dtype is None:
        consts = {"state_ptr": None, **consts}
    if name == "update" and not kind.count_stalled:
        consts = {"count_ptr": None, **consts}
    # Triton treats an argument that is None as a constexpr
    signature |= dict.fromkeys(consts, "constexpr")
    source = ASTSource(fn=KERNELS[name], signature=signature, constexprs=consts)
    ours = launch_options(kind, name, TARGETS[target])
    ours |= options or {}
    if has_amd_linker():
        return triton.compile(source, target=TARGETS[target], options=ours)
    # the readers need the assembly only, which is written before linking
    with patch.object(HIPBackend, "path_to_rocm_lld", staticmethod(lambda: shutil.which("true"))):
        return triton.compile(source, target=TARGETS[target], options=ours)


@cache
def made(build: Build) -> CompiledKernel:
    """Compile the kernel of ``build``, once a process."""
    return compiled(build.kind, build.kernel, build.target)
