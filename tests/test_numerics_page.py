"""The commands and the code of docs/numerics-check.md run; the commands on few checks."""

import re
import shlex
from pathlib import Path

from fused_optim.cli.check import HEADS
from fused_optim.cli.main import main
from fused_optim.testing import assert_equivalent

PAGE = (Path(__file__).parent.parent / "docs" / "numerics-check.md").read_text()
# in the jobs for CI too
COMMANDS = re.findall(r"^(?: +- run: )?fused-optim (check[^#\n]*)", PAGE, re.M)
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
FEW = ["--dtype", "float32", "--against", "torch"]


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    write_shapes, compare, use_fixture = CODE
    for code in (compare, write_shapes, use_fixture):
        exec(compile(code, "numerics-check.md", "exec"), names)
    names["test_my_optimizer"](assert_equivalent)
    assert (tmp_path / "model.json").read_text().startswith('{"0.weight": [16, 8]')


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    assert len(COMMANDS) == 14
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.json").write_text('{"0.weight": [16, 8], "0.bias": [16]}')
    for command in COMMANDS:
        arguments, _, path = command.partition(">")
        words = shlex.split(arguments)
        if "--compare" not in words and "--dtype" not in words:
            words += FEW if "--optimizer" in words else [*FEW, "--optimizer", "sgd"]
        code = main(words)
        printed = capsys.readouterr()
        assert code == 0, (command, printed)
        if path:
            (tmp_path / path.strip()).write_text(printed.out)
    assert (tmp_path / "numerics.xml").exists()


def test_the_columns_are_those_of_the_page():
    assert all(head in PAGE for head in HEADS.values())
