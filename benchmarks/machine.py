"""Where a result comes from: machine, versions, command."""

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.race import DEVICE
from benchmarks.rivals import RIVALS


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """As the kernel names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe() -> dict[str, Any]:
    """What a result depends on; neither the machine's name nor its user."""
    packages = ["torch", "triton", "numpy", "fused-optim", *(rival.package for rival in RIVALS)]
    versions = {package: version(package) for package in dict.fromkeys(packages)}
    found: dict[str, Any] = {
        "device": DEVICE.type,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
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
