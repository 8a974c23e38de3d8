"""The example's GPT in a storage format: what the trainings that compare formats share."""

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.machine import cpu_model
from examples.gpt.model import GPT

RESULTS = Path(__file__).parent / "results"


class NarrowGPT(GPT):
    """A GPT with parameters in bf16 that are multiplied in float32, as a CPU emulates bf16."""

    skeleton: tuple[GPT]  # in a tuple, so that it is no submodule

    @classmethod
    def of(cls, weights: GPT) -> "NarrowGPT":
        """Return a copy of a model, with its parameters rounded."""
        model = copy.deepcopy(weights).bfloat16()
        model.__class__ = cls
        assert isinstance(model, NarrowGPT)
        model.skeleton = (copy.deepcopy(weights).to("meta"),)
        return model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        wide = {name: param.float() for name, param in self.named_parameters()}
        logits: Tensor = functional_call(self.skeleton[0], wide, (tokens,))
        return logits


class Format(NamedTuple):
    """A storage format of an optimizer.

    Attributes:
        dtype: dtype of the parameters, float32 or bfloat16.
        options: options that select the format.
    """

    dtype: torch.dtype
    options: dict[str, Any]

    def copy_of(self, weights: GPT) -> GPT:
        """Return a copy of a model in float32, with parameters of this dtype."""
        return copy.deepcopy(weights) if self.dtype is torch.float32 else NarrowGPT.of(weights)


def make_parser(page: str | None, steps: int) -> argparse.ArgumentParser:
    """Return a parser of ``--steps``, ``--seeds``, ``--threads`` and ``--output``."""
    parser = argparse.ArgumentParser(description=(page or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def describe_training(given: argparse.Namespace, module: str) -> dict[str, Any]:
    """Return the arguments ``steps``, ``seeds`` and ``threads``, machine, versions and command."""
    return {
        "steps": given.steps,
        "seeds": given.seeds,
        "threads": given.threads,
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m {module}",
    }
