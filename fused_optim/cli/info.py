"""The command ``info``: versions, devices, backends and caches."""

from typing import Any

import torch

from fused_optim.backends import select
from fused_optim.cli import machine, options, output
from fused_optim.cli.output import UsageError


def info(as_json: options.Json = False) -> None:
    """Show versions, devices, the backend of each and why not another, caches.

    Example: fused-optim info --json
    """
    devices = [describe_device(*found) for found in machine.list_devices()]
    # after the devices: that a program has imported triton is among the reasons
    versions = machine.read_versions()
    reason = machine.host_extension_reason()
    caches = [found._asdict() for found in machine.list_caches()]
    if as_json:
        output.print_json(
            {
                "versions": versions,
                "devices": devices,
                "host_extension": {"used": reason is None, "why_not": reason},
                "caches": caches,
            }
        )
        return
    output.print_table(
        ["", "version"], ([name, found or "-"] for name, found in versions.items()), names=2
    )
    output.print_table(
        ["device", "name", "backend", "why not another"],
        ([d["device"], d["name"], d["backend"], "\n".join(name_reasons(d))] for d in devices),
        names=4,
    )
    extension = (
        "used, in C" if reason is None else f"not used, steps are compared in Python: {reason}"
    )
    output.print_text(f"host extension: {extension}\n")
    output.print_table(
        ["cache", "folder", "files", "MiB"],
        (
            [c["name"], c["path"] or "-", f"{c['files']:,}", f"{c['size'] / 2**20:.1f}"]
            for c in caches
        ),
        names=2,
    )


def describe_device(device: torch.device, name: str) -> dict[str, Any]:
    """Return the backend that ``"auto"`` is on a device, and why each of the others is not.

    Raises:
        UsageError: an environment variable of the native backend has a wrong value.
    """
    try:
        chosen = select.resolve("auto", device)
        reasons = {
            "triton": select.triton_unavailable_reason(device),
            "native": select.native_unavailable_reason(device),
        }
    except ValueError as error:
        raise UsageError(str(error)) from error
    why_not = {backend: why for backend, why in reasons.items() if why is not None}
    return {"device": str(device), "name": name, "backend": chosen, "why_not": why_not}


def name_reasons(device: dict[str, Any]) -> list[str]:
    """Return a line for each backend that cannot run on a device."""
    return [f"not {backend}: {why}" for backend, why in device["why_not"].items()]
