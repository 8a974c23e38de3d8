"""Conversion of command-line options to objects; errors are a ValueError of one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

import fused_optim

from .corpus import Corpus, standard_library

# an optimizer that is not listed trains with its own defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 2e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
    "Adam": {"lr": 2e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4},
    "SGD": {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4},
}


def first_line(error: BaseException) -> str:
    """Return the first line of the message of ``error``, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def usable_device(name: str) -> torch.device:
    """Return the device called ``name``, after a trial.

    Raises:
        ValueError: torch cannot compute there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # an AssertionError is what a device gives that torch was built without
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {first_line(error)}") from error
    return device


def optimizers(module: object) -> dict[str, type[Optimizer]]:
    """Return the optimizer classes of a module by name."""
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    return {name: value for name, value in classes.items() if issubclass(value, Optimizer)}


def optimizer_pair(
    name: str, backend: str, device: torch.device
) -> tuple[type[Optimizer], Callable[..., Optimizer]]:
    """Return torch's optimizer of that name, and ours bound to ``backend``, after a trial step.

    Raises:
        ValueError: one of the libraries has no such optimizer, or the backend is refused.
    """
    theirs, ours = optimizers(torch.optim), optimizers(fused_optim)
    common = sorted(theirs.keys() & ours.keys())
    if name not in common:
        raise ValueError(f"--optimizer must be one of {', '.join(common)}, got {name}")
    fused = partial(ours[name], backend=backend)
    weight = torch.zeros(1, device=device)
    weight.grad = torch.zeros_like(weight)
    try:
        fused([weight]).step()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--backend {backend} cannot be used: {first_line(error)}") from error
    return theirs[name], fused


def read_corpus(path: Path | None, context: int) -> Corpus:
    """Read and split the text in ``path``, or the standard library's sources.

    Raises:
        ValueError: the file cannot be read or is too short.
    """
    try:
        text = standard_library() if path is None else path.read_bytes()
    except OSError as error:
        raise ValueError(f"--text {path} cannot be read: {error.strerror}") from error
    try:
        return Corpus.split(text, context)
    except ValueError as error:
        source = "the standard library's sources" if path is None else f"--text {path}"
        raise ValueError(f"{source} cannot be used: {error}") from error
