"""Stub of AMD's libamdhip64: launches are recorded, not executed."""

import re

from triton import knobs
from triton.backends import amd
from triton.backends.amd.driver import HIPDriver, HIPLauncher

from ci.codegen.linker import NO_AMD_LINKER, has_amd_linker

from .driver import Launch, Launcher, StubDriver, load_library, require_compilation

ARCH = "gfx942"
# an argument in the code object's metadata; the runtime adds those of the kind hidden_...
_ARGUMENT = re.compile(r"\.offset: +(\d+)\n +\.size: +(\d+)\n +\.value_kind:(?! *hidden_)")


class _Launcher(Launcher, HIPLauncher):
    binary, assembly = "hsaco", "amdgcn"


class HipStub(StubDriver, HIPDriver):
    """Triton's driver of AMD GPUs on the stub of libamdhip64."""

    # Triton caches compiled kernels by the number of the device: other numbers than NVIDIA's
    devices, executes = (2, 3), False

    def __init__(self) -> None:
        names = "libamdhip64.so", "libamdhip64.so.6"
        self.library = load_library(amd, "hip.c", *names, DEVICES=4, ARCH=f'"{ARCH}"')
        with knobs.amd.scope():
            knobs.amd.libhip_path = str(self.library.path)
            super().__init__()
        self.launcher_cls = _Launcher

    def widths_of(self, assembly: str) -> tuple[int, ...]:
        """Return the bytes of each argument that the code object's metadata declares."""
        return tuple(int(size) for _, size in _ARGUMENT.findall(assembly))

    def execute(self, launch: Launch) -> None:
        """Do nothing: AMD's machine code cannot be interpreted here."""


def kernarg(launch: Launch) -> bytes:
    """Return the kernel argument segment of a launch, as the HIP runtime fills it in memory."""
    offsets = [int(offset) for offset, _ in _ARGUMENT.findall(launch.kernel.assembly)]
    segment = bytearray()
    for offset, value in zip(offsets, launch.parameters, strict=True):
        segment += bytes(offset - len(segment)) + value
    return bytes(segment)


def hip() -> HipStub:
    """Return a driver of two devices of gfx942; as a context, it is Triton's active driver.

    Raises:
        RuntimeError: there is no C compiler, no linker for AMD's code, the real libamdhip64.so is
            loaded in this process, or Triton interprets kernels instead of compiling them.
    """
    require_compilation()
    if not has_amd_linker():
        raise RuntimeError(NO_AMD_LINKER)
    return HipStub()
