"""Options of the benchmarks, and results with a row for each variant of a test.

``pytest benchmarks --benchmark-only`` measures in minutes what this machine can; ``--full``
measures everything; ``--smoke`` runs each benchmark once on tiny tensors, which measures nothing.
``--threads 2,1`` times the steps with two threads and with one. With
``--benchmark-json=benchmarks/results/NAME.json`` the results are kept for ``benchmarks.report``.
"""

import argparse
from collections.abc import Generator
from typing import Any

import pytest

from benchmarks.interleaved import Roofline, rows_of
from benchmarks.machine import describe, thread_counts


def counts(text: str) -> list[int]:
    """Convert ``"2,1"`` to [2, 1]."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"must be numbers >= 1 with commas between, got {text!r}")
    return list(dict.fromkeys(found))


def positive(text: str) -> int:
    """Convert ``"2"`` to 2."""
    found = counts(text)
    if len(found) > 1:
        raise argparse.ArgumentTypeError(f"must be one number, got {text!r}")
    return found[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--full``, ``--smoke``, ``--threads``, ``--layers`` and ``--rounds``."""
    group = parser.getgroup("fused_optim")
    group.addoption("--full", action="store_true", help="all models, formats and optimizers")
    group.addoption("--smoke", action="store_true", help="each benchmark once, on tiny tensors")
    group.addoption(
        "--threads",
        type=counts,
        metavar="N[,N...]",
        help="numbers of threads that steps are timed with (default: torch's)",
    )
    group.addoption("--layers", type=positive, help="layers of the models of test_muon.py")
    group.addoption("--rounds", type=positive, help="runs of each variant of test_muon.py")


def pytest_configure(config: pytest.Config) -> None:
    """Set what pytest-benchmark reads when it starts."""
    # a warning of another library is no reason to fail
    config.addinivalue_line("filterwarnings", "default")
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "rounds"]


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Return True under ``--smoke``: tiny tensors, one run, no measurement."""
    return bool(request.config.option.smoke)


@pytest.fixture(scope="session")
def roofline(request: pytest.FixtureRequest) -> Roofline:
    """Allocate the buffers of the copy and the triad once a session."""
    return Roofline(request.config.option.smoke)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """Describe machine, versions and command."""
    return describe(thread_counts(config.option.threads))


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(
    config: pytest.Config, benchmarks: list[dict[str, Any]], group_by: str
) -> Generator[None, list[Any], list[Any]]:
    """Show a row for each variant."""
    benchmarks[:] = [row for entry in benchmarks for row in rows_of(entry)]
    return (yield)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep a row for each variant, and the reason of each that was absent."""
    entries = output_json["benchmarks"]
    output_json["absent"] = {e["name"]: e["extra_info"].pop("absent", {}) for e in entries}
    output_json["benchmarks"] = [row for entry in entries for row in rows_of(entry)]
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
        del row["options"], row["params"], row["param"]
