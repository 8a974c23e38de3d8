"""Warnings that name the line of the user's code, not one of torch or of this library."""

import inspect
import warnings
from pathlib import Path

import torch

_PACKAGES = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def warn_user(message: str) -> None:
    """Issue a UserWarning at the innermost frame that is neither of torch nor of this library.

    A fixed number of frames does not do: hooks, profilers and torch.compile add some.
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
