"""The native backend: the kernels compiled for the CPU, on the same tables as on a GPU."""

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fused_optim.backends.base import BucketKey, CompileError
from fused_optim.backends.constexprs import (
    Constexprs,
    Geometry,
    argument_types,
    constants,
    describe,
)
from fused_optim.backends.kernel_runner import Argument, Executor
from fused_optim.backends.native import threads
from fused_optim.backends.native.compiler import compile_kernel
from fused_optim.backends.native.image import Kernel
from fused_optim.backends.native.levels import level

# A block of 64 elements has one scale. The other numbers are chosen by measurement: a chunk is long
# enough to amortize the start of a program, and short enough to balance threads. They must not
# depend on the machine or the number of threads, or the bits of the norm would.
GEOMETRY = Geometry(
    block=64, norm_block=16, chunk=4096, span=1, rows=16, partials=64, consecutive=True
)
# estimated cost of a launch, for the choice of the number of threads
BYTES_PER_NS = 8.0
NS_PER_PROGRAM = 60.0
NS_PER_THREAD = 20_000.0
TURNS = 16  # average number of times that a thread takes programs: balances unequal threads


class NativeExecutor(Executor):
    """An executor that runs kernels on the threads of this process.

    Each kernel is compiled once, before any tensor is changed: missing optional arguments are
    replaced by neutral values.
    """

    geometry = GEOMETRY

    def __init__(self, key: BucketKey) -> None:
        self.key = key
        self.kernels: dict[str, Kernel] = {}
        self.neutral: Mapping[str, Tensor] = {
            "partials": torch.tensor([[torch.nan, 0.0]], dtype=torch.float64, device="cpu"),
            # float32, as the kernel reads them, whatever torch's default dtype is
            "grad_scale": torch.ones(1, dtype=torch.float32, device="cpu"),  # not scaled
            "found_inf": torch.zeros(1, dtype=torch.float32, device="cpu"),
            "report": torch.empty(3, dtype=torch.float64, device="cpu"),  # unused output
        }
        self._bytes = {
            "norm": float(key.dtypes[key.first[1]].itemsize),
            "update": key.bytes_moved,
            "reduce": sum(d.itemsize / n for d, n in zip(key.dtypes, key.blocks, strict=True)),
        }

    @override
    def compile(self) -> None:
        if not self.kernels:
            self.kernels = {
                name: self._compile(name, constexprs)
                for name, constexprs in constants(self.key, self.geometry).items()
            }

    def _compile(self, name: str, constexprs: Constexprs) -> Kernel:
        absent = self._absent(name)

        def source() -> tuple[Any, dict[str, str], dict[str, Any]]:
            from fused_optim.backends import triton

            kernel = triton.KERNELS[name]
            names = [parameter.name for parameter in kernel.params if not parameter.is_constexpr]
            types = argument_types(self.key.compute)
            signature = {argument: types[argument] for argument in names if argument not in absent}
            return kernel, signature, {**dict.fromkeys(absent), **triton.resolve(constexprs)}

        try:
            text = f"{describe(constexprs)} without {absent}"
            return compile_kernel(name, text, source, level())
        except Exception as error:  # Triton, LLVM and the disk raise different classes
            reason = f"{type(error).__name__}: {error}"
            raise CompileError(f"the kernel {name!r} cannot be compiled: {reason}") from error

    def _absent(self, name: str) -> tuple[str, ...]:
        """Return the names of the arguments that are always None for this bucket."""
        if name == "prepare" and self.key.scalar_state_dtype is None:
            return ("state_ptr",)
        if name == "update" and not self.key.count_stalled:
            return ("count_ptr",)
        return ()

    @override
    def run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        values = [
            arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args if arg is not None
        ]
        work = programs * NS_PER_PROGRAM + elements * self._bytes.get(name, 0.0) / BYTES_PER_NS
        count = min(torch.get_num_threads(), programs, 1 + int(work / NS_PER_THREAD))
        grain = programs if count == 1 else -(-programs // (count * TURNS))
        launch = (ctypes.c_int64 * (3 + len(values)))(0, grain, programs, *values)
        kernel = self.kernels[name]
        threads.run(kernel, kernel.address, ctypes.addressof(launch), count)
