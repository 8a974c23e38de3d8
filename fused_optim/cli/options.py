"""Options that several commands share, and the conversion of their values."""

from typing import Annotated

import torch
import typer

import fused_optim
from fused_optim.cli.output import UsageError
from fused_optim.optimizers.base import FusedOptimizer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
# every optimizer of the library by name
OPTIMIZERS: dict[str, type[FusedOptimizer]] = {
    name: found
    for name in fused_optim.__all__
    if isinstance(found := getattr(fused_optim, name), type) and issubclass(found, FusedOptimizer)
}
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def find_optimizer(name: str) -> type[FusedOptimizer]:
    """Return the optimizer class called ``name``, in any case of the letters.

    Raises:
        UsageError: there is none.
    """
    for known, found in OPTIMIZERS.items():
        if known.lower() == name.lower():
            return found
    raise UsageError(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def find_dtype(name: str) -> torch.dtype:
    """Return the dtype called ``name``: ``"bfloat16"``, ``"bf16"``, ``"torch.bfloat16"``.

    Raises:
        UsageError: there is none, or parameters cannot have it.
    """
    known = SHORT_DTYPES.get(name, name).removeprefix("torch.")
    if known not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    dtype: torch.dtype = getattr(torch, known)
    return dtype


def find_device(name: str) -> torch.device:
    """Return the device called ``name``, after a trial.

    Raises:
        UsageError: torch cannot compute there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    # an AssertionError is what a device gives that torch was built without
    except (RuntimeError, AssertionError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--device {name} cannot be used: {message}") from error
    return device


def default_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
