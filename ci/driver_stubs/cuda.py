"""Stub of NVIDIA's libcuda: launches run the PTX of the loaded kernel in ptxsim."""

from functools import cache
from pathlib import Path

import torch
from ptxsim.machine import run
from ptxsim.memory import Memory
from ptxsim.program import load
from ptxsim.state import Options
from ptxsim.tensors import LiveTensors
from triton import knobs
from triton.backends import nvidia
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher

from .driver import Launch, Launcher, StubDriver, receive
from .library import Library, build

ARCH = 90


@cache
def _library() -> Library:
    include = Path(nvidia.__path__[0]) / "include"
    # Triton's older versions link by the name without a number
    path = build("cuda.c", "libcuda.so.1", "libcuda.so", include, DEVICES=2, ARCH=ARCH)
    return Library(path, receive)


class _Launcher(Launcher, CudaLauncher):
    binary, assembly = "cubin", "ptx"


class CudaStub(StubDriver, CudaDriver):
    """Triton's driver of NVIDIA GPUs on the stub of libcuda."""

    devices, executes = (0, 1), True

    def __init__(self) -> None:
        self.library = _library()
        with knobs.nvidia.scope():
            knobs.nvidia.libcuda_path = str(self.library.path.parent)
            super().__init__()
        self.launcher_cls = _Launcher
        self.get_device_capability = lambda device: divmod(ARCH, 10)
        self._tensors = LiveTensors()

    def widths_of(self, assembly: str) -> tuple[int, ...]:
        """Return the bytes of each parameter that the PTX entry declares."""
        return tuple(bits // 8 for _, bits in load(assembly).parameters)

    def execute(self, launch: Launch) -> None:
        """Run the PTX with the parameters of the launch."""
        values = [int.from_bytes(value, "little") for value in launch.parameters]
        ptx, threads, options = launch.kernel.assembly, launch.block[0], Options(self.blocks)
        with torch._C.DisableTorchFunction():  # here tensors are on the CPU, and do not pretend
            memory = Memory(self._tensors.recent(), self._tensors.every)
            run(ptx, launch.grid, threads, values, memory, launch.shared, options)


def cuda() -> CudaStub:
    """Return a driver of two devices of sm_90; as a context, it is Triton's active driver.

    Raises:
        RuntimeError: there is no C compiler, the real libcuda.so.1 is loaded in this process, or
            Triton interprets kernels instead of compiling them (TRITON_INTERPRET).
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")
    return CudaStub()
