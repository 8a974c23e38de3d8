"""Check for the linker that Triton needs for AMD targets."""

from triton.backends.amd.compiler import HIPBackend

NO_AMD_LINKER = "Triton before 3.5 links for AMD with ROCm's ld.lld, which is not installed"


def has_amd_linker() -> bool:
    """Return True if Triton can link for AMD: from 3.5 on always, before with ROCm's ld.lld."""
    if not hasattr(HIPBackend, "path_to_rocm_lld"):
        return True
    try:
        HIPBackend.path_to_rocm_lld()
    except Exception:  # noqa: BLE001  Triton 3.4 raises Exception itself without ld.lld
        return False
    return True
