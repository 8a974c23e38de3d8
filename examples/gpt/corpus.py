"""Text as bytes: the standard library's sources or a file, split and cut into batches."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LIMIT = 2 * 1024 * 1024
VALIDATION_SHARE = 0.1


def standard_library() -> bytes:
    """Return the first LIMIT bytes of the top-level modules of this Python, by name."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= LIMIT:
            break
    return bytes(text[:LIMIT])


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes kept aside, each a 1-dim uint8 tensor."""

    train: Tensor
    validation: Tensor

    @classmethod
    def split(cls, text: bytes, context: int) -> Corpus:
        """Keep the last tenth of ``text`` for validation.

        Raises:
            ValueError: the text does not hold one window of ``context`` + 1 bytes in each part.
        """
        least = int((context + 1) / VALIDATION_SHARE) + 1
        if len(text) < least:
            raise ValueError(f"the text must have >= {least} bytes, got {len(text)}")
        data = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        cut = int(len(data) * (1 - VALIDATION_SHARE))
        return cls(data[:cut], data[cut:])


def windows(data: Tensor, count: int, length: int, seed: int) -> Tensor:
    """Cut ``count`` random windows [count, length] out of ``data``; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - length + 1, (count, 1), generator=generator)
    return data[starts + torch.arange(length)].long()
