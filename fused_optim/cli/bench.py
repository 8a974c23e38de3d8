"""The command ``bench``: the quick suite of ``benchmarks/`` as a table of ratios."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fused_optim.cli import checkout, options, output
from fused_optim.cli.output import UsageError

Optimizer = Annotated[str, typer.Option(metavar="NAME", help="One that torch.optim has too.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="MODEL", help="List of tensors; repeatable.")
]
Rivals = Annotated[
    list[str] | None,
    typer.Option("--rival", metavar="NAME", help="Time this one only; repeatable. [default: all]"),
]
Threads = Annotated[
    str | None, typer.Option(metavar="N[,N...]", help="Numbers of threads. [default: torch's]")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the ratios into this file.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Tiny tensors, one run: measures nothing.")]


def bench(
    optimizer: Optimizer = "AdamW",
    models: Models = None,
    rivals: Rivals = None,
    threads: Threads = None,
    plot: Plot = None,
    smoke: Smoke = False,
    as_json: options.Json = False,
) -> None:
    """Time a step beside torch.optim and other libraries, as ratios.

    It needs a clone of the repository: pip install -e ".[cpu,cli,bench]"

    Example: fused-optim bench --rival "torch fused" --threads 2,1 --plot out.png
    """
    output.check_plot(plot)
    counts = read_threads(threads)
    quick = checkout.load_module("bench", "benchmarks.quick")
    try:
        suite = quick.Suite(optimizer, models or (), rivals or (), counts, smoke)
    except ValueError as error:
        raise UsageError(str(error)) from error
    comparisons = []
    with output.progress_bar(len(suite)) as bar:
        for found in suite.run(lambda name, done, runs: bar.describe(f"{name}: {done}/{runs}")):
            comparisons.append(found)
            bar.advance()
    if as_json:
        machine = checkout.load_module("bench", "benchmarks.machine")
        output.print_json(
            {
                "machine": machine.describe(counts, "fused-optim"),
                "baseline": suite.baseline,
                "comparisons": [document_of(found, suite.baseline) for found in comparisons],
            }
        )
    else:
        print_ratios(comparisons, suite)
    if plot is not None:
        save_ratios(comparisons, suite, plot)


def read_threads(text: str | None) -> list[int]:
    """Return the numbers of ``"2,1"``.

    Raises:
        UsageError: they are no numbers from 1 on.
    """
    if text is None:
        return [torch.get_num_threads()]
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise UsageError(f"--threads must be numbers >= 1 with commas between, got {text!r}")
    return list(dict.fromkeys(found))


def ratios(found: Any, baseline: str) -> dict[str, float]:
    """Return the time of each candidate of a comparison, relative to the baseline."""
    times = {row["name"]: row["median"] for row in found.rows if row["role"] != "roofline"}
    return {name: median / times[baseline] for name, median in times.items()}


def document_of(found: Any, baseline: str) -> dict[str, Any]:
    """Return a comparison for JSON."""
    shares = ratios(found, baseline) if found.rows else {}
    keys = ("name", "role", "median", "iqr", "rounds", "bytes", "tensors", "parameters", "cut")
    return {
        "model": found.model,
        "threads": found.threads,
        "why_not": found.why_not,
        "absent": found.absent,
        "rows": [
            {**{key: row[key] for key in keys}, "ratio": shares.get(row["name"])}
            for row in found.rows
        ],
    }


def print_ratios(comparisons: list[Any], suite: Any) -> None:
    """Print a table with a row for each candidate and a column for each model."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for found in comparisons:
        for name, share in ratios(found, suite.baseline).items() if found.rows else ():
            cells.setdefault((name, found.threads), {})[found.model] = f"{share:.2f}"
    rows = [
        [name, str(threads), *(own.get(model, "") for model in suite.models)]
        for (name, threads), own in cells.items()
    ]
    output.print_table(["", "threads", *suite.models], rows)
    output.print_text(
        f"{suite.case.optimizer} with clipping, fp32: time of a step / {suite.baseline} + "
        "clip_grad_norm_; less than 1 is faster"
    )
    for found in comparisons:
        if found.why_not:
            output.print_text(f"not measured: {found.model}: {found.why_not}")
    for reason, names in group_absent(comparisons).items():
        output.print_text(f"not measured: {', '.join(names)}: {reason}")


def group_absent(comparisons: list[Any]) -> dict[str, list[str]]:
    """Return the names of the absent candidates by reason."""
    absent = {name: why for found in comparisons for name, why in found.absent.items()}
    reasons: dict[str, list[str]] = {}
    for name, why in absent.items():
        reasons.setdefault(why, []).append(name)
    return reasons


def save_ratios(comparisons: list[Any], suite: Any, path: Path) -> None:
    """Draw the ratios of the largest number of threads.

    Raises:
        UsageError: there is nothing to draw, or the file cannot be written.
    """
    plots = checkout.load_module("bench", "benchmarks.plots")
    rows = [row for found in comparisons for row in found.rows]
    figure = plots.steps(rows, suite.case.optimizer, suite.baseline)
    if figure is None:
        raise UsageError("--plot: nothing was measured")
    output.save_plot(figure, path)
