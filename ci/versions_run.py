"""The checks of ci/versions.sh: ``ci/versions_run.py [VERSION ...]``; without one, all versions.

For each minor version of Triton that pyproject.toml allows, the newest release on the package
index is installed in a folder of its own, and the tests of ``CHECKS`` run with it and the other
packages of this interpreter. A test that a version cannot pass is skipped by
tests/helpers/versions.py with a reason, which the table repeats.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=2", "--timeout=20")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu")
LIMIT = 600  # seconds after which a command has failed


class Unreachable(Exception):
    """A missing or unexpected answer of the package index."""


class Check(NamedTuple):
    """Tests to run with each version.

    Attributes:
        name: column of the table.
        arguments: arguments of pytest; the first is a file.
        only: versions to check.
    """

    name: str
    arguments: tuple[str, ...]
    only: SpecifierSet = SpecifierSet()


CODEGEN = "tests/gpu_code/test_codegen.py"
EXECUTION = "tests/gpu_code/test_ptx_execution.py"
BITS = "tests/test_kernels_vs_reference.py"
HERE = Version(metadata.version("triton"))  # of this interpreter
CHECKS = (
    # every build, the checks of its code, and AMD's linker
    Check("compiled", (CODEGEN, "tests/gpu_code/test_compile.py", "--few", "-k", "test_the_")),
    # steps in the PTX interpreter, bit for bit
    Check("executed", (EXECUTION, "--few", "-k", "every_optim or denorm")),
    # through Triton's own launcher
    Check("launched", ("tests/gpu_code/test_launcher.py", "-k", "every_kernel or past_two")),
    # steps of the kernels that are compiled for the CPU, bit for bit
    Check("native", (BITS, "-k", "in_formats and split24 and (adamw or lamb)")),
    # steps in Triton's interpreter, bit for bit
    Check("interpreted", (BITS, "--interpret", "-k", "format_interpreted")),
    # the Triton version of the GPU machine
    Check("ci/gpu.sh", ("tests/test_gpu_script.py", "-k", "dry_run"), SpecifierSet("==3.6.*")),
)


class Found(NamedTuple):
    """The result of a check with one version.

    Attributes:
        passed: number of passed tests.
        failed: names of failed tests, and other errors.
        refused: reasons of skipped tests.
        seconds: duration in seconds.
        log: output of pytest.
    """

    passed: int
    failed: list[str]
    refused: list[str]
    seconds: float = 0.0
    log: str = ""


def capture(
    command: Sequence[str], variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout and capture its output; its status is 124 after a timeout."""
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"not done after {LIMIT} s")


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command printed, of stderr if there is any."""
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return said[-1] if said else f"status {result.returncode} and no word"


def allowed(pyproject: str) -> SpecifierSet:
    """Return the versions of Triton that the text of a pyproject.toml allows.

    Raises:
        ValueError: the extra "triton" does not require triton.
    """
    project = tomllib.loads(pyproject)["project"]
    for line in project["optional-dependencies"]["triton"]:
        requirement = Requirement(line)
        if requirement.name == "triton":
            return requirement.specifier
    raise ValueError("pyproject.toml requires no triton in the extra of that name")


def newest_of_each_minor(bounds: SpecifierSet, released: Iterable[Version]) -> list[Version]:
    """Return the last release of each minor version within ``bounds``, in order."""
    found: dict[tuple[int, int], Version] = {}
    for version in sorted(bounds.filter(released)):
        found[version.major, version.minor] = version
    return list(found.values())


def released() -> list[Version]:
    """Return the releases of Triton on the package index for this Python and platform.

    Raises:
        Unreachable: the index does not list them.
    """
    result = capture([*PIP, "index", "versions", "triton"])
    line = re.search(r"^Available versions: (.+)$", result.stdout, re.MULTILINE)
    if result.returncode or line is None:
        raise Unreachable(f"the package index does not name its tritons: {last_line(result)}")
    return [Version(version) for version in line[1].split(", ")]


def environment(folder: Path, caches: Path) -> dict[str, str]:
    """Return the environment of a process that imports Triton from ``folder`` if it is there."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRITON"))}
    return clean | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "TRITON_CACHE_DIR": str(caches),
        "OMP_NUM_THREADS": "1",
    }


def results(report: Path) -> Found:
    """Read the results from a JUnit XML file of pytest."""
    passed, failed, refused = 0, [], dict[str, None]()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            failed.append(f"{case.get('classname', '')}::{case.get('name')}")
        elif "skipped" in kinds:
            refused[kinds["skipped"].get("message", "skipped without a reason")] = None
        else:
            passed += 1
    return Found(passed, failed, list(refused))


def run(check: Check, variables: dict[str, str], report: Path) -> Found:
    """Run the tests of one check."""
    if not (ROOT / check.arguments[0]).exists():
        return Found(0, [], [f"{check.arguments[0]} is not in this checkout"])
    start = time.monotonic()
    result = capture([*PYTEST, *check.arguments, f"--junitxml={report}"], variables)
    seconds = time.monotonic() - start
    found = results(report) if report.exists() else Found(0, ["pytest wrote no report"], [])
    if (result.returncode != 0) != bool(found.failed):
        found.failed.append(f"pytest ended with status {result.returncode}")
    return found._replace(seconds=seconds, log=result.stdout + result.stderr)


def install(version: Version, folder: Path, variables: dict[str, str]) -> Found:
    """Install Triton alone into ``folder``, unless this interpreter has the version."""
    start, what = time.monotonic(), f"triton=={version}"
    if version != HERE:
        command = [*PIP, "install", "--quiet", "--no-deps", "--target", str(folder), what]
        result = capture(command)
        if result.returncode:
            return Found(0, [f"pip install {what}: {last_line(result)}"], [])
    # guards against tests of another version than the one in the table
    result = capture([sys.executable, "-c", "import triton; print(triton.__version__)"], variables)
    if last_line(result) != str(version):
        return Found(0, [f"import triton: {last_line(result)}"], [])
    return Found(1, [], [], time.monotonic() - start)


def look(version: Version) -> dict[str, Found]:
    """Run every check with one version."""
    with tempfile.TemporaryDirectory(prefix=f"triton-{version}-") as name:
        folder = Path(name)
        variables = environment(folder / "site", folder / "cache")
        found = {"installed": install(version, folder / "site", variables)}
        for check in CHECKS if found["installed"].passed else ():
            if version not in check.only:
                continue
            found[check.name] = run(check, variables, folder / f"{check.name}.xml")
            print(f"triton {version}: {check.name}: {cell(found[check.name])}", flush=True)
        return found


def cell(found: Found | None) -> str:
    """Return the text of a cell of the table."""
    if found is None:
        return "not run"
    counts = {"passed": found.passed, "FAILED": len(found.failed), "refused": len(found.refused)}
    words = [f"{count} {word}" for word, count in counts.items() if count]
    return f"{', '.join(words)}; {found.seconds:.0f} s"


def show(rows: dict[Version, dict[str, Found]], console: Console) -> None:
    """Print the table of versions by checks, then the failures and the reasons of refusals."""
    columns = ["installed", *(check.name for check in CHECKS)]
    table = Table("triton", *columns)
    for version, found in rows.items():
        table.add_row(str(version), *(cell(found.get(column)) for column in columns))
    said = [(f"triton {v}, {name}", one) for v, row in rows.items() for name, one in row.items()]
    for where, found in said:
        if found.failed:
            console.rule(where)
            console.print(found.log, markup=False)
    console.print(table)
    for where, found in said:
        for reason in found.refused:
            console.print(f"{where}: refused: {reason}", markup=False, highlight=False)
        for name in found.failed:
            console.print(f"{where}: FAILED: {name}", style="red", markup=False, highlight=False)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 1 if a test or an installation failed, else 0."""
    bounds = allowed((ROOT / "pyproject.toml").read_text())
    try:
        versions = [Version(a) for a in arguments] or newest_of_each_minor(bounds, released())
    except Unreachable as error:
        print(f"ci/versions.sh: {error}", file=sys.stderr)
        return 1
    print(f"triton{bounds}: {', '.join(map(str, versions))}", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = dict(zip(versions, pool.map(look, versions), strict=True))
    show(rows, Console(width=None if sys.stdout.isatty() else 160))
    return int(any(found.failed for row in rows.values() for found in row.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
