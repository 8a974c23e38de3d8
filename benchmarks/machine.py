"""Description of a measurement: machine, versions, threads, command."""

import math
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import DEVICE
from benchmarks.muon_libraries import LIBRARIES
from benchmarks.third_party import THIRD_PARTY
from fused_optim.cli.machine import cpu_model, distribution_version


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


def describe(threads: list[int], program: str = "pytest") -> dict[str, Any]:
    """Describe machine, versions and command, without the names of the machine and its user.

    Args:
        threads: numbers of threads that steps are timed with.
        program: first word of the command.
    """
    packages = ["torch", "triton", "llvmlite", "numpy", "fused-optim"]
    packages += [library.package for library in (*THIRD_PARTY, *LIBRARIES)]
    versions = {package: distribution_version(package) for package in dict.fromkeys(packages)}
    found: dict[str, Any] = {
        "device": DEVICE.type,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {package: v for package, v in versions.items() if v is not None},
        "command": shlex.join([program, *sys.argv[1:]]),
    }
    if DEVICE.type != "cpu":
        module = torch.get_device_module(DEVICE)
        found["gpu"] = module.get_device_name(DEVICE)
        found["driver"] = torch.version.cuda or torch.version.hip or ""
    return found
