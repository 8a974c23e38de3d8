"""Train a small GPT with torch.optim and with fused_optim, and compare the loss curves.

Two models of a million parameters start from the same weights and see the same batches of the
Python standard library's sources: one is trained by torch's optimizer and ``clip_grad_norm_``,
the other by the optimizer of that name in fused_optim with ``max_grad_norm``. A third run, torch's
with every rounding done differently, measures the effect of rounding alone on this training;
`verdict.py` explains how the two curves are judged by it.

Exit codes: 0 the curves are equal but for rounding; 1 they differ by more; 2 an option cannot be
used; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Argument parser with errors of one line; ``--help`` shows the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole(least: int, text: str) -> int:
    """Convert ``text`` to an integer of at least ``least``."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
    return number


def positive(text: str) -> int:
    """Convert ``text`` to an integer above 0."""
    return whole(1, text)


def natural(text: str) -> int:
    """Convert ``text`` to an integer from 0 on."""
    return whole(0, text)


def create_parser() -> Parser:
    """Describe the command line."""
    parser = Parser(
        prog="python -m examples.gpt",
        description="Train a small GPT with torch.optim and with fused_optim, curve on curve.",
        epilog="Exit code 1: the curves part by more than rounding explains.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device", default="cpu", help="where to train: cpu (default), cuda, xpu, ...")
    add("--steps", type=positive, help="length of the training and its schedule (default 500)")
    add("--until", type=positive, metavar="STEP", help="end early, in the middle of the schedule")
    add("--optimizer", help="AdamW (default) or another that torch.optim and fused_optim share")
    add("--seed", type=natural, help="of the initial weights and the batches (default 0)")
    add("--backend", default="auto", help="fused_optim's backend (default auto)")
    add("--text", type=Path, metavar="FILE", help="to train on (default: Python's own sources)")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="for the PNG (default out)")
    add("--save", type=Path, metavar="FILE", help="keep fused_optim's run, at the end or on Ctrl-C")
    add(
        "--resume",
        type=Path,
        metavar="FILE",
        help="let all optimizers go on from what --save wrote; its steps, seed and optimizer are "
        "the defaults then",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    parser = create_parser()
    options = parser.parse_args(arguments)
    # threads that wait by spinning take the cores from those that work, where others work as well
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        # torch takes seconds to import: --help need not wait, and Ctrl-C is quiet meanwhile
        from rich.console import Console

        from .session import prepare

        try:
            session = prepare(options)
        except ValueError as error:
            parser.error(str(error))
        return session.run(Console(), Console(stderr=True))
    except OSError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
