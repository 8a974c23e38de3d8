"""The command ``info``: versions, devices, backends and caches."""

from fused_optim.cli.options import Json


def info(as_json: Json = False) -> None:
    """Show versions, devices, the backend of each and why, and caches.

    Example: fused-optim info --json
    """
