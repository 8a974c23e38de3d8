"""Time to compile at the first step of a small model, in processes that have compiled nothing.

With a cold cache the kernels are compiled; with a warm one they are read from the files that an
earlier process left. The reported time is that of the first step minus that of
the second. The compilers that the first step imported are reported too.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import variants
from benchmarks.first_step import COMPILERS, MODEL
from benchmarks.interleaved import DEVICE, Variant, record
from benchmarks.shapes import MODELS, count

ROOT = Path(__file__).parent.parent
PROCESSES = 3


def run(caches: list[Path], smoke: bool) -> list[dict[str, Any]]:
    """Take the first steps in one process after another, which keep compiled kernels in these."""
    command = [sys.executable, "-m", "benchmarks.first_step", *(["--smoke"] if smoke else [])]
    command += map(str, caches)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def variant(name: str, runs: list[dict[str, Any]]) -> Variant:
    """Return the variant that reports the results of these processes."""
    imported = [name for name in COMPILERS if any(name in run["imported"] for run in runs)]
    facts = {
        "backend": runs[0]["backend"],
        "imported": ", ".join(imported) or "none",
        "first": [run["seconds"][0] for run in runs],
    }
    return Variant(name, "ours", lambda: None, facts)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the default device is not the CPU")
def test_first_step(benchmark: BenchmarkFixture, smoke: bool, tmp_path: Path) -> None:
    """Report the compilation of the demo's model, with a cold and with a warm cache."""
    refusal = variants.why_not_ours("AdamW", "fp32", "native", "cpu")
    if refusal is not None:
        pytest.skip(f"the native backend cannot run here: {refusal}")
    processes = 1 if smoke else PROCESSES

    def measure() -> dict[str, list[dict[str, Any]]]:
        caches = [tmp_path / str(i) for i in range(processes)]
        found = run([*caches, *caches], smoke)
        return {"cold cache": found[:processes], "warm cache": found[processes:]}

    found = benchmark.pedantic(measure)
    tensors = MODELS[MODEL].tensors(MODELS[MODEL].layers)
    benchmark.extra_info.update(suite="first step", model=MODEL, tensors=len(tensors))
    benchmark.extra_info["parameters"] = count(tensors)
    compiling = [[r["seconds"][0] - r["seconds"][1] for r in runs] for runs in found.values()]
    record(benchmark, [variant(name, runs) for name, runs in found.items()], compiling)
