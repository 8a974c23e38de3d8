"""Checkpoints in a directory: one directory each, and a file with the name of the last one.

``torch.distributed.checkpoint`` writes into a new directory. ``latest`` is replaced only after
every process has written, so a process that is killed while it saves leaves the one before usable.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

LATEST = "latest"


class Position(NamedTuple):
    """Step of a checkpoint and length of its training, which are the name of its directory."""

    step: int
    steps: int

    @property
    def name(self) -> str:
        """Name of the directory."""
        return f"step-{self.step}-of-{self.steps}"


def find_latest(folder: Path) -> Position:
    """Read which checkpoint in ``folder`` is the last one.

    Raises:
        ValueError: there is none.
    """
    try:
        name = (folder / LATEST).read_text()
    except OSError as error:
        raise ValueError(f"no checkpoint in {folder}: {error.strerror}") from error
    found = re.fullmatch(r"step-(\d+)-of-(\d+)", name)
    if found is None:
        raise ValueError(f"{folder / LATEST} must have the name of a checkpoint, got {name!r}")
    return Position(int(found[1]), int(found[2]))


def save(folder: Path, position: Position, state: dict[str, Any]) -> None:
    """Write ``state`` as a new checkpoint and make it the last one; every process calls this."""
    path = folder / position.name
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)  # what a killed process left
    dist.barrier()
    dcp.save(state, checkpoint_id=path)  # returns when every process has written
    if dist.get_rank() == 0:
        replace(folder / LATEST, position.name)
    dist.barrier()


def replace(path: Path, text: str) -> None:
    """Replace a file by one with ``text``, so that a reader sees the old or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(folder: Path, position: Position, state: dict[str, Any]) -> None:
    """Load a checkpoint into ``state``; every process calls this, in any number."""
    dcp.load(state, checkpoint_id=folder / position.name)
