"""Dry runs of ci/gpu.sh on a machine without GPU."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
import triton

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy the files of the project, without git."""
    target = tmp_path_factory.mktemp("bare") / "checkout"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "results", "*.egg-info")
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    return target


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """Return a Python with torch, triton, numpy and pytest alone."""
    path = tmp_path_factory.mktemp("python") / "venv"
    venv.create(path, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
    others = ("pytest_benchmark", "pytest_xdist", "xdist", "rich", "matplotlib", "fused_optim")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((*others, "__editable__")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return path / "bin" / "python"


def gpu_script(checkout, out, *arguments, python=sys.executable):
    """Run the script in a copy of the checkout, with the PYTHONPATH of ci/versions.sh kept.

    What ci/versions.sh puts into PYTHONPATH stays, so that it can be run with another Triton.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRITON"))}
    clean |= {"PYTHON": str(python), "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(checkout / "ci" / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd="/", check=False)


def test_without_a_gpu_it_says_so(checkout, tmp_path):
    result = gpu_script(checkout, tmp_path / "out")
    assert result.returncode == 3
    assert f"no GPU: torch {torch.__version__}" in result.stdout
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_refused(checkout, tmp_path):
    result = gpu_script(checkout, tmp_path, "--dry")
    assert result.returncode == 2
    assert "ci/gpu.sh [--dry-run]" in result.stderr


def test_a_dry_run_collects_the_tests_and_reports(checkout, bare_python, tmp_path):
    """Guard against GPU tests that are not collected, others that are, and a need for xdist."""
    result = gpu_script(checkout, tmp_path, "--dry-run", python=bare_python)
    assert result.returncode == 0, result.stdout + result.stderr
    log = (tmp_path / "tests-0.log").read_text()
    names = [line for line in log.splitlines() if "::" in line]
    for name in (
        "test_ptx_execution.py::test_every_optimizer[AdamW-fp32-cuda",
        "test_large.py::test_offsets_past_two_to_the_31[cuda]",
        "test_order.py::test_the_same_bits[cuda-again]",
        "test_device.py::test_a_graph_of_the_step[cuda]",
    ):
        assert any(name in line for line in names), name
    assert all("cuda" in line or "test_the_gpu_of_the_parameters" in line for line in names)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["triton"] == triton.__version__
    assert found["machine"]["device"] is None
    summary = (tmp_path / "summary.md").read_text()
    assert "# No GPU" in summary
    assert "No benchmarks: pytest-benchmark is not installed." in summary


def test_a_dry_run_collects_the_benchmarks(checkout, tmp_path):
    """Guard against options that pytest-benchmark does not have; the tests are left out here."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *" -m gpu tests "*) ;; *) exec {sys.executable} "$@" ;; esac\n'
    )
    python.chmod(0o755)
    result = gpu_script(checkout, tmp_path, "--dry-run", python=python)
    assert "benchmarks: exit status" not in result.stdout, result.stdout
    log = (tmp_path / "benchmarks.log").read_text()
    assert "benchmarks/test_steps.py::" in log
    assert "pytest-benchmark is not installed" not in (tmp_path / "summary.md").read_text()


def test_the_report_counts_over_shards(checkout, tmp_path):
    case = '<testsuites><testsuite><testcase classname="a.b" name="{}" time="1.5">{}</testcase>'
    for i, (name, child) in enumerate({"x": "", "y": "<failure/>", "z": "<skipped/>"}.items()):
        end = "</testsuite></testsuites>"
        (tmp_path / f"tests-{i}.xml").write_text(case.format(name, child) + end)
        (tmp_path / f"tests-{i}.log").touch()
    (tmp_path / "tests-3.log").touch()
    stats = {"median": 0.002, "iqr": 0.0001, "rounds": 5}
    item = {"fullname": "benchmarks/test_a.py::test_b", "stats": stats, "extra_info": {"GB": 1.25}}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"benchmarks": [item]}))
    command = [sys.executable, str(checkout / "ci" / "gpu_report.py"), str(tmp_path), "100"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    actual = json.loads((tmp_path / "summary.json").read_text())["tests"]
    assert (actual["passed"], actual["failed"], actual["skipped"]) == (1, ["b::y"], ["b::z"])
    assert actual["unfinished_shards"] == ["tests-3"]
    text = (tmp_path / "summary.md").read_text()
    assert "| test_a.py::test_b | 2 | 0.1 | 5 | 1.25 |" in text
    assert "FAILED b::y" in text
