"""The command ``check``: compare the kernels of this machine with the reference and with torch."""

import importlib.metadata
import math
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fused_optim.backends.select import (
    native_unavailable_reason,
    resolve,
    triton_unavailable_reason,
)
from fused_optim.cli import model_files
from fused_optim.cli.options import SHORT_DTYPES, Json, default_device, find_device
from fused_optim.cli.output import (
    UsageError,
    check_file,
    print_json,
    print_table,
    print_text,
    progress_bar,
)
from fused_optim.options import BACKENDS
from fused_optim.testing.checks import (
    EDGE_SHAPES,
    Result,
    Settings,
    describe_result,
)
from fused_optim.testing.comparisons import rank
from fused_optim.testing.junit import write_junit
from fused_optim.testing.processes import choose_processes, run_in_processes
from fused_optim.testing.reports import compare_reports, read_report
from fused_optim.testing.selection import AGAINST, Wanted, list_checks

EDGES = "edges"
SHOWN = 20  # failures that are listed
HEADS = {
    "reference": "bits: ulps / 0",
    "float64": "a step: ulps / budget",
    "torch": "torch: ulps / budget",
}
Names = list[str] | None


def check(
    device: Annotated[str, typer.Option(help="cpu or cuda; default: the accelerator.")] = "",
    backend: Annotated[str, typer.Option(help="auto, triton, native or reference.")] = "auto",
    optimizer: Annotated[Names, typer.Option(help="Classes, or cases such as adamw-decay.")] = None,
    weights: Annotated[Names, typer.Option(help="Formats of weights, as split,master.")] = None,
    states: Annotated[Names, typer.Option(help="Formats of states, as int8,fp8.")] = None,
    dtype: Annotated[Names, typer.Option(help="Dtypes of parameters, as bfloat16.")] = None,
    against: Annotated[Names, typer.Option(help="reference, float64 or torch.")] = None,
    shapes: Annotated[str, typer.Option(help="edges, gpt2, or a JSON file.")] = EDGES,
    quick: Annotated[bool, typer.Option("--quick", help="The usual rules, in seconds.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All rules in all formats.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of values and gradients.")] = 0,
    processes: Annotated[
        int, typer.Option(min=0, help="Run checks in parallel.", show_default="threads")
    ] = 0,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Compare two files of --json instead."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check bits, errors and torch.optim on this machine; exit code 1 if one fails.

    Example: fused-optim check --quick --optimizer AdamW --junit numerics.xml
    """
    if compare is not None:
        compare_files(*compare, as_json)
        return
    if quick and full:
        raise UsageError("--quick and --full exclude each other")
    if junit is not None:
        check_file("--junit", junit)
    wanted = Wanted(
        split(optimizer),
        split(weights),
        split(states),
        [SHORT_DTYPES.get(name, name) for name in split(dtype)],
        split(against),
        "quick" if quick else "full" if full else "default",
    )
    settings = make_settings(device, backend, shapes, seed)
    try:
        checks = list_checks(wanted, settings.backend)
    except ValueError as error:
        raise UsageError(str(error)) from error
    results, start = [], time.perf_counter()
    count = processes or choose_processes(checks, settings)
    with progress_bar(len(checks)) as bar:
        for result in run_in_processes(checks, settings, count):
            results.append(result)
            bar.advance()
            bar.describe(result.check.name)
    report = make_report(results, settings, shapes, time.perf_counter() - start)
    if junit is not None:
        write_xml(junit, report)
    if as_json:
        print_json(report)
    else:
        print_results(results, report)
    if report["summary"]["failed"]:
        raise typer.Exit(1)


def split(given: Names) -> list[str]:
    """Return the names of an option that is repeated, or has several names joined by commas."""
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]


def make_settings(device: str, backend: str, shapes: str, seed: int) -> Settings:
    """Return what all checks share.

    Raises:
        UsageError: the device, the backend or the shapes cannot be used.
    """
    if backend not in BACKENDS:
        raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    place = find_device(device) if device else default_device()
    try:
        resolved = resolve(backend, place)
    except RuntimeError as error:
        raise UsageError(f"--{error}") from error
    if shapes == EDGES:
        return Settings(place, resolved, EDGE_SHAPES, seed)
    try:
        found = model_files.read_model(shapes)
    except ValueError as error:
        raise UsageError(f"--shapes {EDGES}, or as for --model: {error}") from error
    # layers repeat each other
    distinct = {shape: name for name, shape in reversed(found.items())}
    return Settings(place, resolved, {name: shape for shape, name in distinct.items()}, seed)


def list_environment(settings: Settings) -> dict[str, str]:
    """Return versions, device and backend."""
    found = {"device": str(settings.device), "backend": settings.backend}
    if settings.device.type != "cpu":
        found["device"] += f" ({torch.get_device_module(settings.device).get_device_name()})"
    for name in ("fused-optim", "torch", "triton", "llvmlite", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version(), "platform": platform.platform()}


def make_report(
    results: Sequence[Result], settings: Settings, shapes: str, seconds: float
) -> dict[str, Any]:
    """Return what ``--json`` prints.

    Args:
        results: results of all checks.
        settings: settings of the run.
        shapes: argument of ``--shapes``.
        seconds: time that the run took.
    """
    described = [describe_result(result, settings, shapes) for result in results]
    counts = {
        status: sum(result.status == status for result in results)
        for status in ("passed", "failed", "skipped")
    }
    return {
        "environment": list_environment(settings),
        "settings": {"shapes": shapes, "seed": settings.seed},
        "summary": {**counts, "seconds": round(seconds, 2)},
        "results": described,
    }


def write_xml(path: Path, report: dict[str, Any]) -> None:
    """Write JUnit XML.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        write_junit(path, report["results"], report["environment"])
    except OSError as error:
        raise UsageError(f"--junit {path} cannot be written: {error.strerror}") from error


def print_results(results: Sequence[Result], report: dict[str, Any]) -> None:
    """Print the table of worst errors, what failed, and how to repeat it."""
    environment, summary = report["environment"], report["summary"]
    where = f"{environment['backend']} on {environment['device']}, torch {environment['torch']}"
    classes = dict.fromkeys(result.check.variant.case.class_name for result in results)
    rows = [make_row(name, results) for name in classes]
    print_table(["optimizer", "checks", *HEADS.values(), "failed"], rows, where)
    failures = [one for one in report["results"] if one["status"] == "failed"]
    for one in failures[:SHOWN]:
        print_text(f"FAILED {one['name']}: {one['message']}\n  {one['command']}")
    if len(failures) > SHOWN:
        print_text(f"and {len(failures) - SHOWN} more: --json or --junit lists all")
    if environment["backend"] == "reference":
        print_text(f"no bits were compared: {explain_reference(environment['device'])}")
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    print_text(
        f"{summary['passed']} passed, {summary['failed']} failed{skipped} "
        f"in {summary['seconds']:.1f} s"
    )


def explain_reference(device: str) -> str:
    """Return why there are no kernels to compare with the reference."""
    place = torch.device(device.split()[0])
    reason = native_unavailable_reason if place.type == "cpu" else triton_unavailable_reason
    return reason(place) or "--backend reference"


def make_row(name: str, results: Iterable[Result]) -> list[str]:
    """Return the row of an optimizer: the worst error and its budget for each comparison."""
    own = [result for result in results if result.check.variant.case.class_name == name]
    failed = sum(result.status == "failed" for result in own)
    cells = []
    for against in AGAINST:
        found = [r for r in own if r.check.against == against and r.status != "skipped"]
        cells.append(describe_worst(found))
    return [name, str(len(own)), *cells, str(failed) if failed else "-"]


def describe_worst(results: Sequence[Result]) -> str:
    """Return the error that takes most of its budget, and the budget."""
    if not results:
        return "-"
    result = max(results, key=lambda result: rank(result.worst))
    worst = result.worst
    if not result.value:  # nothing was measured
        return "error"
    error = "not finite" if math.isinf(worst.error) else f"{worst.ulps:.2f}"
    return f"{error} / {worst.budget_ulps:.2f}" if worst.budget else error


def compare_files(old: Path, new: Path, as_json: bool) -> None:
    """Print what differs between two reports; exit code 1 if the new one is worse.

    Raises:
        UsageError: a file cannot be used.
    """
    try:
        found = compare_reports(read_report(old), read_report(new))
    except ValueError as error:
        raise UsageError(f"--compare: {error}") from error
    worse = sum(difference.is_worse for difference in found)
    if as_json:
        print_json({"worse": worse, "differences": [one._asdict() for one in found]})
    else:
        if found:
            rows = [(one.kind, one.name, one.text) for one in found]
            print_table(["what", "check", "how"], rows, names=3)
        print_text(f"{worse} of {len(found)} differences are worse")
    if worse:
        raise typer.Exit(1)
