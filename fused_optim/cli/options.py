"""Options that several commands share, and the conversion of their values."""

import ast
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer

import fused_optim
from fused_optim.cli import model_files
from fused_optim.cli.models import Shapes
from fused_optim.cli.output import UsageError
from fused_optim.optimizers.base import FusedOptimizer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL", help="Built-in name, number of parameters (7B), config.json, shapes.json."
    ),
]
Optimizer = Annotated[str, typer.Option(metavar="NAME", help="Name of a fused_optim class.")]
Dtype = Annotated[
    str, typer.Option(metavar="DTYPE", help="Dtype of the parameters, as bfloat16 or fp32.")
]
MaxGradNorm = Annotated[
    float | None, typer.Option(metavar="NORM", help="Bound of the norm, to clip.")
]
EmaDecay = Annotated[
    float | None, typer.Option(metavar="RATE", help="Decay rate of an average of the weights.")
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="auto, triton, native or reference.")]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Argument of the optimizer; repeatable."),
]
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


def read_model(text: str) -> Shapes:
    """Return the shapes of ``--model`` by name.

    Raises:
        UsageError: there is no such model, or its file cannot be used.
    """
    try:
        return model_files.read_model(text)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error


def read_arguments(given: Sequence[str] | None, **named: Any) -> dict[str, Any]:
    """Return the keyword arguments of an optimizer: ``NAME=VALUE`` texts, and options by name.

    Args:
        given: texts; a value is a Python literal, or else a string.
        named: options of their own on the command line; None where they were not given.

    Raises:
        UsageError: a text has no ``=``, or a name is repeated.
    """
    found = {name: value for name, value in named.items() if value is not None}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise UsageError(f"--set must be NAME=VALUE, got {text!r}")
        if name in found:
            raise UsageError(f"--set {name}: it was given already")
        found[name] = read_literal(value)
    return found


def read_literal(text: str) -> Any:
    """Return the value of a Python literal; the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
