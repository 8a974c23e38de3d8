"""Stub of NVIDIA's libcuda: launches run the PTX of the loaded kernel in ptxsim."""

import torch
from triton import knobs
from triton.backends import nvidia
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher

from ci.ptxsim.machine import run
from ci.ptxsim.memory import Memory
from ci.ptxsim.program import load
from ci.ptxsim.state import Options
from ci.ptxsim.tensors import LiveTensors

from .driver import Launch, Launcher, StubDriver, load_library, require_compilation

ARCH = 90


class _Launcher(Launcher, CudaLauncher):
    binary, assembly = "cubin", "ptx"


class CudaStub(StubDriver, CudaDriver):
    """Triton's driver of NVIDIA GPUs on the stub of libcuda."""

    devices, executes = (0, 1), True

    def __init__(self) -> None:
        # Triton's older versions link by the name without a number
        names = "libcuda.so.1", "libcuda.so"
        self.library = load_library(nvidia, "cuda.c", *names, DEVICES=2, ARCH=ARCH)
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
        with torch._C.DisableTorchFunction():  # tensors report the CPU, not a pretended device
            memory = Memory(self._tensors.recent(), self._tensors.every)
            run(ptx, launch.grid, threads, values, memory, launch.shared, options)


def cuda() -> CudaStub:
    """Return a driver of two devices of sm_90; as a context, it is Triton's active driver.

    Raises:
        RuntimeError: there is no C compiler, the real libcuda.so.1 is loaded in this process, or
            Triton interprets kernels instead of compiling them (TRITON_INTERPRET).
    """
    require_compilation()
    return CudaStub()
