"""Triton's launches: all rows of one kind in one launch each of norm, begin and update."""

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_optim.backends.base import BucketKey
from fused_optim.backends.constexprs import Constexprs, Geometry, constants, map_nested
from fused_optim.backends.kernel_runner import Argument
from fused_optim.kernels import norm, prepare, reduce, update

KERNELS = {
    "norm": norm.norm,
    "prepare": prepare.prepare,
    "reduce": reduce.reduce,
    "finalize": reduce.finalize,
    "update": update.update,
}
# 1024 programs of norm are enough for any device, and one block for begin
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
# one rounding an operation, as the reference has it
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


class Target(Protocol):
    """What is compiled for; ``triton.backends.compiler.GPUTarget`` is one."""

    backend: str
    warp_size: int


class InterpreterTarget:
    """The interpreter's: nothing depends on it."""

    backend, warp_size = "interpreter", 32


def options(key: BucketKey, name: str, target: Target) -> dict[str, Any]:
    """How the kernel ``name`` is compiled.

    Random bits beside every value take registers: with 8 elements a thread up to 240, which leaves
    few warps to hide the memory's latency; with 4 about half of that. Warps of 64 have 4 anyway.
    """
    found = dict(OPTIONS)
    if name not in ("norm", "reduce", "update"):
        return found  # these go through rows, not elements
    if key.stochastic and name != "norm" and target.warp_size == 32:
        found["num_warps"] = 8
    if target.backend == "cuda":
        found["maxnreg"] = registers(key, name)
    return found


def registers(key: BucketKey, name: str) -> int:
    """How many registers a thread may take: told nothing, ptxas spills to need fewer than these.

    Rows that are not aligned have an address and a predicate for each element.
    """
    most = 96 if name == "update" and len(key.dtypes) < 7 else 128
    if not key.aligned:
        most = 168
    return min(most * key.compute.itemsize // 4, 255)


def active_target() -> Target:
    """Of the active device."""
    if triton.knobs.runtime.interpret:
        return InterpreterTarget()
    target: Target = triton.runtime.driver.active.get_current_target()
    return target


def kernel_counterpart(function: Callable[..., Any]) -> Any:
    """The jit function of the same name, on the page of the same name in ``kernels``."""
    page = function.__module__.replace("fused_optim.", "fused_optim.kernels.", 1)
    return getattr(importlib.import_module(page), function.__name__)


def resolve(constexprs: Constexprs) -> Constexprs:
    """Return constexpr arguments as Triton takes them: its dtypes, and jit functions."""

    def to_triton(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return DTYPES[value]
        return kernel_counterpart(value) if callable(value) else value

    return cast(Constexprs, map_nested(constexprs, to_triton))


class CachedKernel:
    """A kernel with its constants and options, launched past what Triton does at each call.

    To bind the arguments and to look for the kernel takes Triton 60 us, most of them for constants
    that never change here. What Triton would compile anew for is the key here too.
    """

    def __init__(self, kernel: Any, fixed: dict[str, Any]) -> None:
        self.kernel, self.fixed = kernel, fixed
        self.compiled: dict[Any, Any] = {}

    def launch(self, programs: int, *args: Any) -> None:
        """Launch; the first time by Triton, which compiles."""
        if not isinstance(self.kernel, triton.JITFunction) or self.kernel.pre_run_hooks:
            self.kernel[(programs,)](*args, **self.fixed)
            return
        key = (triton.runtime.driver.active, *map(self._specialization_key, args))
        found = self.compiled.get(key)
        if found is None:
            kernel = self.kernel[(programs,)](*args, **self.fixed)
            rest = self.kernel.arg_names[len(args) :]
            self.compiled[key] = kernel, tuple(self.fixed[name] for name in rest)
        else:
            kernel, rest = found
            kernel[(programs, 1, 1)](*args, *rest)

    @staticmethod
    def _specialization_key(arg: Tensor | int | None) -> Any:
        """What a kernel may depend on: dtype and alignment of memory; the width of a number."""
        if isinstance(arg, Tensor):
            return arg.dtype, arg.data_ptr() % 16 == 0
        # numbers are not specialized further: see do_not_specialize of the kernels
        return arg if arg is None else -(1 << 31) <= arg < 1 << 31


class TritonExecutor:
    """Launches kernels for rows of one kind on Triton's active device."""

    geometry = GEOMETRY
    neutral: Mapping[str, Tensor] = {}

    def __init__(self, key: BucketKey) -> None:
        self.device = key.device
        target = active_target()
        self.ready = {
            name: CachedKernel(KERNELS[name], {**resolve(constexprs), **options(key, name, target)})
            for name, constexprs in constants(key, GEOMETRY).items()
        }

    def compile(self) -> None:
        """Do nothing: Triton compiles at a launch."""

    def run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        """See :class:`~fused_optim.backends.kernel_runner.Executor`."""
        guard = contextlib.nullcontext()
        if self.device.type != "cpu":  # a launch goes to the current device, whatever its arguments
            guard = torch.get_device_module(self.device).device(self.device)
        with guard:
            self.ready[name].launch(programs, *args)
