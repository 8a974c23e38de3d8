"""Description of a measurement: machine, versions, threads, command."""

import importlib.metadata
import math
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import DEVICE
from benchmarks.third_party import THIRD_PARTY


def version(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the name of the processor from the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def free_memory() -> float:
    """Return the free memory of the device in bytes; infinity if it is unknown."""
    if DEVICE.type != "cpu":
        torch.accelerator.empty_cache()
        return float(torch.get_device_module(DEVICE).mem_get_info()[0])
    info = Path("/proc/meminfo")  # MemAvailable counts reclaimable page cache as free
    lines = info.read_text().splitlines() if info.exists() else []
    found = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else math.inf


def thread_counts(asked: list[int] | None) -> list[int]:
    """Return the numbers of threads that steps are timed with; torch's number by default."""
    return asked or [torch.get_num_threads()]


def describe(threads: list[int]) -> dict[str, Any]:
    """Describe machine, versions and command, without the names of the machine and its user.

    Args:
        threads: numbers of threads that steps are timed with.
    """
    packages = ["torch", "triton", "llvmlite", "numpy", "fused-optim"]
    packages += [*(library.package for library in THIRD_PARTY), "pytorch_optimizer"]
    versions = {package: version(package) for package in dict.fromkeys(packages)}
    found: dict[str, Any] = {
        "device": DEVICE.type,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {package: v for package, v in versions.items() if v is not None},
        "command": shlex.join(["pytest", *sys.argv[1:]]),
    }
    if DEVICE.type != "cpu":
        module = torch.get_device_module(DEVICE)
        found["gpu"] = module.get_device_name(DEVICE)
        found["driver"] = torch.version.cuda or torch.version.hip or ""
    return found
