"""The short examples run on a CPU and print what they promise.

examples/train_fsdp2.py and examples/ddp.py run in test_torchrun.py.
"""

import re
import runpy

import pytest
from helpers.processes import ROOT

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
}


def test_every_example_is_run_and_short():
    paths = list((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in paths} == {"__init__", "ddp", "train_fsdp2", *PRINTED}
    assert all(len(path.read_text().splitlines()) <= 40 for path in paths)


@pytest.mark.parametrize("name", PRINTED)
def test_example(name, tmp_path, monkeypatch, capsys):
    """Run the script, and compare the lines in order."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    lines = iter(printed.splitlines())
    for expected in PRINTED[name]:
        assert any(re.match(expected, line) for line in lines), (expected, printed)
