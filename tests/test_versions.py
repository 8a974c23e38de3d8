"""ci/versions.sh: the versions it takes, and failures that must not count as success.

Faults tried by hand: the last status of ``main`` always 0, a report that is missing taken for one
without failures, the version that is imported not compared.
"""

from pathlib import Path

import pytest
from packaging.version import Version

pytest.importorskip("tomllib", reason="ci/versions.sh needs Python 3.11")
pytest.importorskip("rich", reason="ci/versions.sh prints its table with rich")

from ci import versions_run
from ci.versions_run import Check, Found

ROOT = Path(__file__).parent.parent
RELEASED = ["3.10.0", "3.9.1", "3.9.0", "4.0.0rc1", "3.3.1", "3.4.0", "3.4.1", "3.5.0"]
PASSING = "def test_one():\n    pass\n"
OTHERS = """import pytest
@pytest.mark.skip(reason="cannot be had")
def test_two():
    pass
@pytest.mark.xfail(reason="is refused", strict=True)
def test_three():
    raise AssertionError
"""


def test_the_newest_of_each_minor_version_within_the_bounds():
    bounds = versions_run.allowed((ROOT / "pyproject.toml").read_text())
    result = versions_run.newest_of_each_minor(bounds, map(Version, RELEASED))
    assert [str(version) for version in result] == ["3.4.1", "3.5.0", "3.9.1", "3.10.0"]


def test_an_index_that_cannot_be_reached_is_one_line_and_a_failure(monkeypatch, capfd):
    # nothing listens there
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    pip = [one for one in versions_run.PIP if not one.startswith("--retries")]
    monkeypatch.setattr(versions_run, "PIP", [*pip, "--retries=0"])
    assert versions_run.main([]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "the package index does not name its tritons" in lines[0]


@pytest.fixture
def run(tmp_path):
    """Run a check of one test file, with the Triton of this process."""

    def run(text):
        """Run a check of one test file, with the Triton of this process."""
        file = tmp_path / "test_it.py"
        file.write_text(text)
        variables = versions_run.environment(tmp_path / "none", tmp_path / "cache")
        return versions_run.run(Check("it", (str(file),)), variables, tmp_path / "it.xml")

    return run


def test_reasons_of_what_is_refused_are_told(run):
    result = run(PASSING + OTHERS)
    assert (result.passed, result.failed) == (1, [])
    assert sorted(result.refused) == ["cannot be had", "is refused"]
    assert versions_run.cell(result).startswith("1 passed, 2 refused; ")


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        (PASSING + "def test_wrong():\n    assert False\n", "test_wrong"),
        (PASSING + OTHERS.replace("raise AssertionError", "pass"), "test_three"),
        ("raise ImportError('of this version')\n", "test_it"),
        ("", "status 5"),
        ("import os\nos._exit(0)\n", "no report"),
    ],
    ids=["a test", "a reason that no longer holds", "an import", "no tests", "a crash"],
)
def test_what_goes_wrong_is_a_failure(run, text, failed):
    result = run(text)
    assert any(failed in name for name in result.failed)
    assert "FAILED" in versions_run.cell(result)


def test_another_version_than_the_named_one_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(versions_run, "HERE", Version("0.1"))
    variables = versions_run.environment(tmp_path / "none", tmp_path)
    result = versions_run.install(Version("0.1"), tmp_path, variables)
    assert result.failed == [f"import triton: {versions_run.metadata.version('triton')}"]


@pytest.mark.parametrize("failed", [[], ["test_wrong"]], ids=["passed", "failed"])
def test_the_status_is_that_of_every_check(monkeypatch, capsys, failed):
    rows = {
        "3.4.0": Found(3, failed, ["no linker"], 1.0, "assert False"),
        "3.5.0": Found(3, [], []),
    }
    monkeypatch.setattr(versions_run, "look", lambda version: {"compiled": rows[str(version)]})
    assert versions_run.main(list(rows)) == bool(failed)
    said = capsys.readouterr().out
    assert "triton 3.4.0, compiled: refused: no linker" in said
    assert ("triton 3.4.0, compiled: FAILED: test_wrong" in said) == bool(failed)
    assert ("assert False" in said) == bool(failed)


def test_a_check_that_is_not_there_is_refused_by_name(tmp_path):
    result = versions_run.run(Check("it", ("tests/test_none.py",)), {}, tmp_path / "it.xml")
    assert result.refused == ["tests/test_none.py is not in this checkout"]
