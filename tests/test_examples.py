"""The short examples run on a CPU and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# name: lines of the output, as regular expressions
PRINTED = {
    "quickstart": [
        r"backend: (native|reference|triton)",
        r"norm of the last gradient: 0\.\d{4}, factor 0\.\d{4}",
        "equal to torch within 1e-5: True",
    ],
    "amp": [r"torch\.bfloat16: the loss fell: True", r"torch\.float16: the loss fell: True"],
    "storage_formats": [
        "master weights, fp32 states: the loss fell: True",
        r"states +0\.000 +12\.00",
        "split weights, int8 states: the loss fell: True",
        r"states +0\.000 +4\.\d\d",
    ],
    "checkpoint": ["fused_optim: True", r"torch\.optim: True", "from_torch: True"],
    "ddp": ["2 processes equal one within 1e-5: True"],
    "train_fsdp2": [r"2 processes: loss 6\.\d{3}", "one process: equal within rounding"],
}
ARGUMENTS = {"train_fsdp2": ("--steps", "8", "--compare")}
DISTRIBUTED = ("ddp", "train_fsdp2")


def test_every_example_is_run_and_short():
    paths = list((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in paths} == {"__init__", *PRINTED}
    assert all(len(path.read_text().splitlines()) <= 40 for path in paths)


@pytest.mark.parametrize("name", PRINTED)
def test_example(name, tmp_path):
    """Run the script in its own process, on the CPU, and compare the lines in order."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    launcher = TORCHRUN if name in DISTRIBUTED else ()
    path, arguments = ROOT / "examples" / f"{name}.py", ARGUMENTS.get(name, ())
    command = [sys.executable, *launcher, path, *arguments]
    options = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run(command, **options)
    # torch keeps process groups (in the default arguments of torch.distributed.nn, in the caches of
    # DTensor), so gloo's threads outlive destroy_process_group(); one that frees a tensor while the
    # interpreter exits aborts the process, with torch.optim as well, after everything is printed
    aborted = (
        name in DISTRIBUTED and "terminate called without an active exception" in result.stderr
    )
    assert result.returncode == 0 or aborted, result.stderr
    lines = iter(result.stdout.splitlines())
    for expected in PRINTED[name]:
        assert any(re.match(expected, line) for line in lines), (expected, result.stdout)
