"""Checkpoint of a run: torch's state_dicts of model, optimizer and scheduler, and the step."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .training import Run

# what torch.load raises for a file that is cut, or was never written by torch.save
UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file, which ``torch.save`` writes as a dict with these keys.

    Attributes:
        optimizer_name: name of the optimizer, the same in torch and in fused_optim.
        seed: seed of the initial weights and of the batches.
        steps: length of the schedule, in steps.
        step: number of steps taken.
        state: state_dicts of ``model``, ``optimizer`` and ``scheduler``.
    """

    optimizer_name: str
    seed: int
    steps: int
    step: int
    state: dict[str, dict[str, Any]]

    def save(self, path: Path) -> None:
        """Write to ``path``, which is replaced only once everything is written."""
        part = path.with_name(path.name + ".part")
        torch.save(asdict(self), part)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what ``save`` wrote.

        Raises:
            ValueError: there is no such file, or it is no checkpoint of this example.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"--resume {path} cannot be read: {error.strerror}") from error
        try:
            return cls(**torch.load(BytesIO(content), map_location="cpu", weights_only=True))
        except UNREADABLE as error:
            raise ValueError(f"--resume {path} is no checkpoint of this example") from error

    def restore(self, run: Run) -> None:
        """Let ``run`` go on from here.

        Raises:
            ValueError: the state is that of another model.
        """
        try:
            run.load_state_dict(self.state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError("--resume: this is a checkpoint of another model") from error
