"""Check for the linker that Triton needs for AMD targets."""

from importlib import metadata

from packaging.version import Version
from triton.backends.amd.compiler import HIPBackend


def has_amd_linker() -> bool:
    """Return True if Triton can link for AMD: from 3.5 on always, before with ROCm's ld.lld."""
    if Version(metadata.version("triton")).release >= (3, 5):
        return True
    try:
        HIPBackend.path_to_rocm_lld()
    except Exception:  # noqa: BLE001  Triton 3.4 raises Exception itself if it finds no ld.lld
        return False
    return True
