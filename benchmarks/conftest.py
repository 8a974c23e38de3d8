"""Options of the benchmarks, and results with a row for each variant of a test.

``pytest benchmarks --benchmark-only`` measures in minutes what this machine can; ``--full``
measures everything; ``--smoke`` gives each one turn on tiny tensors, which measures nothing.
``--benchmark-json=benchmarks/results/NAME.json`` keeps the results for ``benchmarks.report``.
"""

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
for folder in (ROOT, ROOT / "ci", ROOT / "examples"):
    if str(folder) not in sys.path:  # at the end, for other libraries come first with their names
        sys.path.append(str(folder))

from benchmarks.machine import describe  # noqa: E402
from benchmarks.race import Roofline, rows_of  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--full`` and ``--smoke``."""
    group = parser.getgroup("fused_optim")
    group.addoption("--full", action="store_true", help="all models, formats and optimizers")
    group.addoption("--smoke", action="store_true", help="each benchmark once, on tiny tensors")


def pytest_configure(config: pytest.Config) -> None:
    """Set what pytest-benchmark reads when it starts."""
    # what other libraries warn of is not for us to fail on
    config.addinivalue_line("filterwarnings", "default")
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "rounds"]


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether nothing is to be measured."""
    return bool(request.config.option.smoke)


@pytest.fixture(scope="session")
def roofline(request: pytest.FixtureRequest) -> Roofline:
    """What the memory can do."""
    return Roofline(request.config.option.smoke)


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Machine, versions and command."""
    return describe()


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(
    config: pytest.Config, benchmarks: list[dict[str, Any]], group_by: str
) -> Generator[None, list[Any], list[Any]]:
    """Show a row for each variant."""
    benchmarks[:] = [row for entry in benchmarks for row in rows_of(entry)]
    return (yield)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep a row for each variant, and once for each test who was absent and why."""
    entries = output_json["benchmarks"]
    output_json["absent"] = {e["name"]: e["extra_info"].pop("absent", {}) for e in entries}
    output_json["benchmarks"] = [row for entry in entries for row in rows_of(entry)]
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
        del row["options"], row["params"], row["param"]
