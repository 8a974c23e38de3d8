"""Kernels for the tests of the native compiler, as the executor makes them and as TTIR by hand."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch

from ci.codegen.builds import FORMATS
from ci.codegen.rules import RULES
from fused_optim.backends import triton
from fused_optim.backends.base import BucketKey
from fused_optim.backends.constexprs import argument_types, constants, describe
from fused_optim.backends.native import cache as on_disk
from fused_optim.backends.native import codegen, frontend
from fused_optim.backends.native.executor import GEOMETRY
from fused_optim.backends.native.image import Image, Kernel
from fused_optim.backends.native.levels import levels
from fused_optim.backends.native.lowering import lower
from fused_optim.backends.native.tree import Function
from fused_optim.backends.native.ttir import parse

HERE = levels()  # levels of this machine
PER_TENSOR = [name for name, rule in RULES.items() if rule.reduction is not None]


class Case(NamedTuple):
    """A kernel to compile, of a rule in a format."""

    kernel: str
    rule: str
    format: str

    @property
    def key(self) -> BucketKey:
        """Bucket key of the rows."""
        key = FORMATS[self.format](RULES[self.rule])
        return key._replace(backend="native", device=torch.device("cpu"), aligned=False)

    def __str__(self) -> str:
        return "-".join(self)


def covering() -> list[Case]:
    """Return cases with every rule, every format and every kernel, each with one or two others."""
    names = list(FORMATS)
    result = {Case("update", "adam", name) for name in names}
    for i, rule in enumerate(RULES):
        result |= {Case("update", rule, names[i % len(names)]), Case("prepare", rule, "fp32")}
    for i, rule in enumerate(PER_TENSOR):
        result.add(Case("reduce", rule, names[i % len(names)]))
        result.add(Case("reduce", rule, names[(i + 7) % len(names)]))
        result.add(Case("finalize", rule, "fp64" if i % 2 else "fp32"))
    result |= {Case("norm", "adam", name) for name in ("fp32", "bf16", "fp16", "fp64")}
    return sorted(result | {Case("prepare", "adam", "fp64")})


def some() -> list[Case]:
    """Return fewer cases for slow tests: every format and every kernel."""
    return [case for case in covering() if case.rule in ("adam", "lamb")]


def source(key: BucketKey, kernel: str) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Return the function, types and constants that the executor asks Triton to compile."""
    absent = _absent(key, kernel)
    function, types = triton.KERNELS[kernel], argument_types(key.compute)
    names = [p.name for p in function.params if not p.is_constexpr and p.name not in absent]
    consts = triton.resolve(constants(key, GEOMETRY)[kernel])
    return function, {name: types[name] for name in names}, {**dict.fromkeys(absent), **consts}


def _absent(key: BucketKey, kernel: str) -> list[str]:
    absent = ["state_ptr"] if kernel == "prepare" and key.scalar_state_dtype is None else []
    return absent + (["count_ptr"] if kernel == "update" and not key.count_stalled else [])


@cache
def text(case: Case) -> str:
    """Return the TTIR of a kernel by the installed Triton."""
    return frontend.make_ttir(*source(case.key, case.kernel))


def ir(function: Function, level: str) -> str:
    """Return the LLVM IR of a function for a level."""
    return lower(function, codegen.LEVELS[level].target)


@cache
def loaded(case: Case, level: str) -> Kernel:
    """Return a kernel that is ready to run, from the executor's cache on disk if it is there."""
    absent = tuple(_absent(case.key, case.kernel))
    constexprs = constants(case.key, GEOMETRY)[case.kernel]
    key = on_disk.key(case.kernel, f"{describe(constexprs)} without {absent}", level)
    code = on_disk.load(key)
    if code is None:
        function = parse(text(case))
        code = codegen.make_code(ir(function, level), function.name, level).pack()
        on_disk.store(key, code)
    return Kernel(Image.unpack(code))


def by_hand(ttir: str, level: str) -> Kernel:
    """Compile the kernel of a TTIR text."""
    function = parse(ttir)
    return Kernel(codegen.make_code(ir(function, level), function.name, level))


def run(kernel: Kernel, *arguments: Any, programs: int = 1, grain: int = 1) -> None:
    """Run all programs in this thread; tensors are passed by their addresses."""
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    launch = (ctypes.c_int64 * (3 + len(values)))(0, grain, programs, *values)
    kernel(ctypes.addressof(launch))


def module(body: str, arguments: str, name: str = "kernel") -> str:
    """Return the TTIR of a module with one function."""
    return f"""module {{
  tt.func public @{name}({arguments}) attributes {{noinline = false}} {{
{body}
    tt.return
  }}
}}
"""
