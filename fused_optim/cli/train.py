"""The command ``train``: the example trainer of the repository, ``examples/gpt``."""

import argparse
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from fused_optim.cli import checkout, options, output
from fused_optim.cli.main import INTERRUPTED, complain
from fused_optim.cli.output import UsageError

Steps = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Length of the training. [default: 500]")
]
Until = Annotated[
    int | None, typer.Option(min=1, metavar="STEP", help="End early, within the schedule.")
]
Optimizer = Annotated[
    str | None, typer.Option(metavar="NAME", help="One that torch.optim has. [default: AdamW]")
]
Seed = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Of weights and batches. [default: 0]")
]
Text = Annotated[
    Path | None, typer.Option(metavar="FILE", help="To train on. [default: Python's own sources]")
]
Save = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keep fused_optim's run, also on Ctrl-C.")
]
Resume = Annotated[Path | None, typer.Option(metavar="FILE", help="Go on from what --save wrote.")]


def train(
    device: Annotated[str, typer.Option(metavar="DEVICE", help="As cpu, cuda.")] = "cpu",
    steps: Steps = None,
    until: Until = None,
    optimizer: Optimizer = None,
    seed: Seed = None,
    backend: options.Backend = "auto",
    text: Text = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="For the plot.")] = Path("out"),
    save: Save = None,
    resume: Resume = None,
    as_json: options.Json = False,
) -> None:
    """Train a small GPT with torch.optim and with fused_optim, and compare the loss curves.

    It needs a clone of the repository. Exit code 1: they differ by more than rounding explains.

    Example: fused-optim train --steps 100
    """
    session = prepare(
        argparse.Namespace(
            device=device,
            steps=steps,
            until=until,
            optimizer=optimizer,
            seed=seed,
            backend=backend,
            text=text,
            out=out,
            save=save,
            resume=resume,
        )
    )
    shown = Console(quiet=True) if as_json else output.console()
    code = session.run(shown, output.console(stderr=True))
    if as_json and code != INTERRUPTED:
        output.print_json(document_of(session))
    elif as_json:
        complain("stopped by Ctrl-C", code)
    raise typer.Exit(code)


def prepare(given: argparse.Namespace) -> Any:
    """Return the session of the example.

    Raises:
        UsageError: there is no clone, or an option cannot be used.
    """
    example = checkout.load_module("train", "examples.gpt.session")
    try:
        return example.prepare(given)
    except (ValueError, OSError) as error:
        raise UsageError(output.one_line(error)) from error


def document_of(session: Any) -> dict[str, Any]:
    """Return the result of a training for JSON; a number that is not finite is null."""
    example = checkout.load_module("train", "examples.gpt.verdict")
    verdict = example.judge(session.runs, session.first)
    return {
        "optimizer": session.name,
        "first_step": session.first + 1,
        "last_step": session.last,
        "within_rounding": bool(verdict.within_rounding),
        "largest_difference": output.finite(verdict.difference),
        "allowed_difference": output.finite(verdict.allowed),
        "at_step": verdict.step,
        "runs": {
            name: {
                "losses": list(map(output.finite, run.losses)),
                "validation": {step: output.finite(v) for step, v in run.validation.items()},
                "optimizer_seconds": output.finite(median(run.seconds)),
            }
            for name, run in (("torch", session.runs.torch), ("fused_optim", session.runs.fused))
        },
        "plot": str(session.picture),
    }
