"""Versions, processor and caches of this machine."""

import importlib
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fused_optim import private_api
from fused_optim.backends.native import cache


class Cache(NamedTuple):
    """A folder of compiled kernels.

    Attributes:
        name: whose cache it is.
        path: the folder; None if there is none, as without a home.
        files: number of files.
        size: bytes of all files.
    """

    name: str
    path: str | None
    files: int
    size: int


def distribution_version(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def module_version(name: str) -> str | None:
    """Return the version of a module, which several distributions may bring; None without it."""
    try:
        return str(importlib.import_module(name).__version__)
    except ImportError:
        return None


def read_versions() -> dict[str, str | None]:
    """Return the versions that decide what runs; None for what is not there."""
    return {
        "fused_optim": distribution_version("fused-optim"),
        "torch": torch.__version__,
        "triton": module_version("triton"),
        "llvmlite": module_version("llvmlite"),
        "numpy": module_version("numpy"),
        "python": platform.python_version(),
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
    }


def cpu_model() -> str:
    """Return the name of the processor from the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def list_devices() -> Iterator[tuple[torch.device, str]]:
    """Yield the devices that torch can compute on, and the name of each."""
    yield torch.device("cpu"), cpu_model()
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return
    names = torch.get_device_module(found)
    for index in range(torch.accelerator.device_count()):
        device = torch.device(found.type, index)
        named = hasattr(names, "get_device_name")
        yield device, names.get_device_name(device) if named else found.type


def host_extension_reason() -> str | None:
    """Return why tensors are compared in Python and not in C, or None if in C."""
    try:
        importlib.import_module("fused_optim._host")
    except ImportError as error:
        return f"not built: {error}"
    try:
        private_api.dlpack_exchange_api()
    except ValueError as error:
        return str(error)
    return None


def list_caches() -> Iterator[Cache]:
    """Yield the caches of compiled kernels."""
    yield measure_cache(f"native ({cache.VARIABLE})", cache.folder())
    if module_version("triton") is not None:
        knobs = importlib.import_module("triton.knobs")
        yield measure_cache("Triton (TRITON_CACHE_DIR)", Path(knobs.cache.dir))


def measure_cache(name: str, folder: Path | None) -> Cache:
    """Return the number and the size of the files in a folder."""
    files = folder.rglob("*") if folder is not None and folder.is_dir() else ()
    sizes = [path.lstat().st_size for path in files if path.is_file()]
    return Cache(name, None if folder is None else str(folder), len(sizes), sum(sizes))
