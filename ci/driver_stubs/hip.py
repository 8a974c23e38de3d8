"""Stub of AMD's libamdhip64: launches are recorded, not executed."""

import re
from functools import cache
from pathlib import Path

import triton
from triton import knobs
from triton.backends import amd
from triton.backends.amd.compiler import HIPBackend
from triton.backends.amd.driver import HIPDriver, HIPLauncher

from .driver import Launch, Launcher, StubDriver, receive
from .library import Library, build

ARCH = "gfx942"
# in the code object's metadata; those whose kind is hidden_... come from the runtime
_ARGUMENT = re.compile(r"\.offset: +(\d+)\n +\.size: +(\d+)\n +\.value_kind:(?! *hidden_)")


@cache
def _library() -> Library:
    include = Path(amd.__path__[0]) / "include"
    name, arch = "libamdhip64.so", f'"{ARCH}"'
    return Library(build("hip.c", name, f"{name}.6", include, DEVICES=4, ARCH=arch), receive)


class _Launcher(Launcher, HIPLauncher):
    binary, assembly = "hsaco", "amdgcn"


class HipStub(StubDriver, HIPDriver):
    """Triton's driver of AMD GPUs on the stub of libamdhip64."""

    # Triton keeps what it has compiled by the number of the device: other ones than NVIDIA's
    devices, executes = (2, 3), False

    def __init__(self) -> None:
        self.library = _library()
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
    places = [int(offset) for offset, _ in _ARGUMENT.findall(launch.kernel.assembly)]
    segment = bytearray()
    for offset, value in zip(places, launch.parameters, strict=True):
        segment += bytes(offset - len(segment)) + value
    return bytes(segment)


def why_no_hip() -> str | None:
    """Return the reason why Triton cannot link code for AMD GPUs here, or None if it can."""
    if not hasattr(HIPBackend, "path_to_rocm_lld"):
        return None  # it has a linker of its own
    try:
        HIPBackend.path_to_rocm_lld()
    except Exception as error:  # noqa: BLE001  Triton 3.4 raises Exception itself
        return f"Triton {triton.__version__} links code for AMD GPUs with ROCm's linker: {error}"
    return None


def hip() -> HipStub:
    """Return a driver of two devices of gfx942; as a context, it is Triton's active driver.

    Raises:
        RuntimeError: there is no C compiler, no linker for AMD's code, the real libamdhip64.so is
            loaded in this process, or Triton interprets kernels instead of compiling them.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")
    reason = why_no_hip()
    if reason is not None:
        raise RuntimeError(reason)
    return HipStub()
