"""Dry runs of ci/gpu.sh on a machine without GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
import triton

from ci import gpu_report

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy the files of the project, without git."""
    target = tmp_path_factory.mktemp("bare") / "checkout"
    ignored = shutil.ignore_patterns(".*", "results", "*.egg-info")
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    return target


def create_bare_python(path):
    """Return a Python with torch, triton, numpy, pytest and pytest-benchmark alone."""
    venv.create(path, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
    others = ("pytest_xdist", "xdist", "rich", "matplotlib", "fused_optim")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((*others, "__editable__")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return path / "bin" / "python"


def create_fake_python(path, refused):
    """Return a program that notes its arguments, and fails if ``refused`` is one of them."""
    path.write_text(
        f'#!/bin/sh\necho "$*" >>{path}.log\ncase "$*" in *"{refused}"*) exit 1 ;; esac\n'
    )
    path.chmod(0o755)
    return path


def gpu_script(checkout, out, *arguments, python=sys.executable):
    """Run the script in a copy of the checkout, with the PYTHONPATH of ci/versions.sh kept.

    What ci/versions.sh puts into PYTHONPATH stays, so that it can be run with another Triton.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRITON"))}
    clean |= {"PYTHON": str(python), "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(checkout / "ci" / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd="/", check=False)


def test_without_a_gpu_it_says_so(checkout, tmp_path, capsys, monkeypatch):
    python = create_fake_python(tmp_path / "python", "--check")
    result = gpu_script(checkout, tmp_path / "out", python=python)
    assert result.returncode == 3
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "python.log").read_text() == "ci/gpu_report.py --check\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main(["--check"]) == 1
    assert f"no GPU: torch {torch.__version__}" in capsys.readouterr().out


def test_an_unknown_option_is_refused(checkout, tmp_path):
    result = gpu_script(checkout, tmp_path, "--dry")
    assert result.returncode == 2
    assert "ci/gpu.sh [--dry-run]" in result.stderr


def test_a_dry_run_collects_everything_and_reports(checkout, tmp_path):
    """Guard against tests that are not collected, others that are, and a need for xdist.

    Also against options that pytest-benchmark does not have. One test, for two collections and a
    report in processes of their own take seconds.
    """
    python = create_bare_python(tmp_path / "venv")
    result = gpu_script(checkout, tmp_path, "--dry-run", python=python)
    assert result.returncode == 0, result.stdout + result.stderr
    log = (tmp_path / "tests-0.log").read_text()
    names = [line for line in log.splitlines() if "::" in line]
    for name in (
        "test_ptx_execution.py::test_every_optimizer[AdamW-fp32-cuda",
        "test_large.py::test_offsets_past_two_to_the_31[cuda]",
        "test_order.py::test_the_same_bits[cuda-order]",
        "test_device.py::test_a_graph_of_the_step[cuda]",
    ):
        assert any(name in line for line in names), name
    assert all("cuda" in line or "test_the_gpu_of_the_parameters" in line for line in names)
    assert "benchmarks/test_steps.py::" in (tmp_path / "benchmarks.log").read_text()
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["triton"] == triton.__version__
    assert found["machine"]["device"] is None
    summary = (tmp_path / "summary.md").read_text()
    assert "# No GPU" in summary
    assert "No benchmarks.\n" in summary


def test_gpu_tests_are_in_the_folder_that_is_collected():
    """Guard against a test for a GPU in a file that ``-m gpu`` leaves out: see conftest.py."""
    tests = ROOT / "tests"
    others = [path for path in tests.rglob("test_*.py") if tests / "gpu_code" not in path.parents]
    marks = re.compile(r"mark\.gpu\b|\bgpu_code\b.* import ")
    assert [path for path in others if marks.search(path.read_text())] == []


def test_without_pytest_benchmark_only_the_tests_run(checkout, tmp_path, monkeypatch):
    python = create_fake_python(tmp_path / "python", "import pytest_benchmark")
    assert gpu_script(checkout, tmp_path, "--dry-run", python=python).returncode == 0
    tests, asked, report = (tmp_path / "python.log").read_text().splitlines()
    assert "--collect-only -m gpu tests --shard 0/1" in tests
    assert asked == "-c import pytest_benchmark"
    assert report.startswith(f"ci/gpu_report.py {tmp_path} ")
    monkeypatch.setattr(gpu_report, "version", lambda package: None)
    assert gpu_report.why_no_benchmarks() == "No benchmarks: pytest-benchmark is not installed."


def test_the_report_counts_over_shards(tmp_path):
    case = '<testsuites><testsuite><testcase classname="a.b" name="{}" time="1.5">{}</testcase>'
    for i, (name, child) in enumerate({"x": "", "y": "<failure/>", "z": "<skipped/>"}.items()):
        end = "</testsuite></testsuites>"
        (tmp_path / f"tests-{i}.xml").write_text(case.format(name, child) + end)
        (tmp_path / f"tests-{i}.log").touch()
    (tmp_path / "tests-3.log").touch()
    stats = {"median": 0.002, "iqr": 0.0001, "rounds": 5}
    item = {"fullname": "benchmarks/test_a.py::test_b", "stats": stats, "extra_info": {"GB": 1.25}}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"benchmarks": [item]}))
    assert gpu_report.main([str(tmp_path), "100"]) == 1
    actual = json.loads((tmp_path / "summary.json").read_text())["tests"]
    assert (actual["passed"], actual["failed"], actual["skipped"]) == (1, ["b::y"], ["b::z"])
    assert actual["unfinished_shards"] == ["tests-3"]
    text = (tmp_path / "summary.md").read_text()
    assert "| test_a.py::test_b | 2 | 0.1 | 5 | 1.25 |" in text
    assert "FAILED b::y" in text
