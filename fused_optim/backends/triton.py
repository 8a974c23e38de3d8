"""The Triton backend: launches of the kernels for all rows of a bucket."""

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

from fused_optim.backends.base import BucketKey
from fused_optim.backends.constexprs import Constexprs, Geometry, constants, map_nested
from fused_optim.backends.kernel_runner import Argument, Executor
from fused_optim.kernels import norm, prepare, reduce, update

KERNELS = {
    "norm": norm.norm,
    "prepare": prepare.prepare,
    "reduce": reduce.reduce,
    "finalize": reduce.finalize,
    "update": update.update,
}
# 1024 programs of norm are enough for any device, and one block of partial sums for prepare
GEOMETRY = Geometry(
    block=1024, norm_block=1024, chunk=1024, span=64, rows=128, partials=1024, consecutive=False
)
DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int16: tl.int16,
    torch.uint8: tl.uint8,
}
# every operation rounds once, as in the reference
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


class Target(Protocol):
    """The target of compilation, such as ``triton.backends.compiler.GPUTarget``."""

    backend: str
    warp_size: int


class InterpreterTarget:
    """The target of the interpreter, which ignores all options."""

    backend, warp_size = "interpreter", 32


def options(key: BucketKey, name: str, target: Target) -> dict[str, Any]:
    """Return the compile options of the kernel ``name``.

    Random bits for every value need registers: with 8 elements per thread up to 240, which leaves
    few warps to hide the latency of memory; with 4 about half of that. Warps of 64 threads have 4
    elements per thread already.
    """
    result = dict(OPTIONS)
    if name not in ("norm", "reduce", "update"):
        return result  # the other kernels process rows, not elements
    if key.stochastic and name != "norm" and target.warp_size == 32:
        result["num_warps"] = 8
    if target.backend == "cuda":
        result["maxnreg"] = registers(key, name)
    return result


def registers(key: BucketKey, name: str) -> int:
    """Return the maximum number of registers per thread; by default ptxas spills at fewer.

    Rows that are not aligned need an address and a predicate for each element.
    """
    most = 96 if name == "update" and len(key.dtypes) < 7 else 128
    if not key.aligned:
        most = 168
    return min(most * key.compute.itemsize // 4, 255)


def active_target() -> Target:
    """Return the target of the active device."""
    if triton.knobs.runtime.interpret:
        return InterpreterTarget()
    target: Target = triton.runtime.driver.active.get_current_target()
    return target


def kernel_counterpart(function: Callable[..., Any]) -> Any:
    """Return the jit function of the same name, in the module of the same name in ``kernels``."""
    module = function.__module__.replace("fused_optim.", "fused_optim.kernels.", 1)
    return getattr(importlib.import_module(module), function.__name__)


def resolve(constexprs: Constexprs) -> Constexprs:
    """Return constexpr arguments with dtypes and functions replaced by those of Triton."""

    def to_triton(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return DTYPES[value]
        return kernel_counterpart(value) if callable(value) else value

    return cast(Constexprs, map_nested(constexprs, to_triton))


class CachedKernel:
    """A kernel with its constants and options, and a cache of compiled kernels.

    At each call Triton takes 60 us to bind the arguments and look up the kernel, mostly for
    constants that never change here. The key of this cache has all properties that Triton
    specializes on.
    """

    def __init__(self, kernel: Any, fixed: dict[str, Any]) -> None:
        self.kernel, self.fixed = kernel, fixed
        self.compiled: dict[Any, Any] = {}

    def launch(self, programs: int, *args: Any) -> None:
        """Launch the kernel, the first time through Triton, which compiles it."""
        if not isinstance(self.kernel, triton.JITFunction) or self.kernel.pre_run_hooks:
            self.kernel[(programs,)](*args, **self.fixed)
            return
        key = (triton.runtime.driver.active, *map(self._specialization_key, args))
        cached = self.compiled.get(key)
        if cached is None:
            kernel = self.kernel[(programs,)](*args, **self.fixed)
            rest = self.kernel.arg_names[len(args) :]
            self.compiled[key] = kernel, tuple(self.fixed[name] for name in rest)
        else:
            kernel, rest = cached
            kernel[(programs, 1, 1)](*args, *rest)

    @staticmethod
    def _specialization_key(arg: Tensor | int | None) -> Any:
        """Return the properties Triton specializes on: dtype and alignment, or width of an int."""
        if isinstance(arg, Tensor):
            return arg.dtype, arg.data_ptr() % 16 == 0
        # numbers are not specialized further: see do_not_specialize of the kernels
        return arg if arg is None else -(1 << 31) <= arg < 1 << 31


class TritonExecutor(Executor):
    """An executor that launches kernels on Triton's active device."""

    geometry = GEOMETRY
    neutral: Mapping[str, Tensor] = {}

    def __init__(self, key: BucketKey) -> None:
        self.device = key.device
        target = active_target()
        self.ready = {
            name: CachedKernel(KERNELS[name], {**resolve(constexprs), **options(key, name, target)})
            for name, constexprs in constants(key, GEOMETRY).items()
        }

    @override
    def compile(self) -> None:
        """Do nothing: Triton compiles at the first launch."""

    @override
    def run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        guard = contextlib.nullcontext()
        if self.device.type != "cpu":  # a launch goes to the current device, whatever its arguments
            guard = torch.get_device_module(self.device).device(self.device)
        with guard:
            self.ready[name].launch(programs, *args)
