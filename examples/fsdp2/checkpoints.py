"""Checkpoints in a folder: one directory each, and a file with the name of the last one.

``torch.distributed.checkpoint`` writes into a new directory. ``latest`` is replaced only after
every process has written, so a process that is killed while it saves leaves the one before usable.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

LATEST = "latest"


class Checkpoint(NamedTuple):
    """Directory of a checkpoint, its step, and the length of its training in steps."""

    path: Path
    step: int
    steps: int


def find_latest(folder: Path) -> Checkpoint:
    """Return the last checkpoint in ``folder``.

    Raises:
        ValueError: there is none.
    """
    try:
        name = (folder / LATEST).read_text()
    except OSError as error:
        raise ValueError(f"no checkpoint in {folder}: {error.strerror}") from error
    found = re.fullmatch(r"step-(\d+)-of-(\d+)\.\w+", name)
    if found is None:
        raise ValueError(f"{folder / LATEST} must have the name of a checkpoint, got {name!r}")
    return Checkpoint(folder / name, int(found[1]), int(found[2]))


def save(folder: Path, step: int, steps: int, state: dict[str, Any]) -> None:
    """Write ``state`` as a new checkpoint and make it the last one; every process calls this."""
    prefix, chosen = f"step-{step}-of-{steps}.", [""]
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [tempfile.mkdtemp(prefix=prefix, dir=folder)]
    dist.broadcast_object_list(chosen)
    path = Path(chosen[0])
    dcp.save(state, checkpoint_id=path)  # returns when every process has written
    if dist.get_rank() == 0:
        replace(folder / LATEST, path.name)
        for other in folder.glob(prefix + "*"):  # of an earlier training, or cut by a kill
            if other != path:
                shutil.rmtree(other)
    dist.barrier()


def replace(path: Path, text: str) -> None:
    """Replace a file by one with ``text``, so that a reader sees the old or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Load a checkpoint into ``state``; every process calls this, in any number."""
    dcp.load(state, checkpoint_id=checkpoint.path)
