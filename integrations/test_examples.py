"""Every example of examples/trainers/ runs by the command that docs/trainers.md names."""

import re
import shlex

import pytest
from launch import ROOT, run_python

COMMAND = re.compile(r"^bash ci/trainers\.sh (.*examples/trainers/(\w+)\.py)$", re.MULTILINE)
PAGE = (ROOT / "docs" / "trainers.md").read_text()
COMMANDS = {name: shlex.split(command) for command, name in COMMAND.findall(PAGE)}
# what is equal to torch.optim, to the uninterrupted run, or as before: printed lines
CHECKS = {
    "hf_trainer": 2,
    "accelerate_loop": 2,
    "lightning_fit": 2,
    "torchtitan_container": 2,
    "peft_lora": 4,
    "compiled_step": 3,
    "ddp": 3,
}


def test_every_example_is_on_the_page():
    files = {path.stem for path in (ROOT / "examples" / "trainers").glob("*.py")}
    assert files - {"byte_model"} == set(COMMANDS) == set(CHECKS)
    for name, command in COMMANDS.items():
        path = ROOT / "examples" / "trainers" / f"{name}.py"
        assert f"\nbash ci/trainers.sh {shlex.join(command)}\n" in path.read_text()


@pytest.mark.parametrize("name", CHECKS)
def test_example(name):
    result = run_python(*COMMANDS[name])
    # gloo's threads may abort a process at its exit, with torch.optim as well
    aborted = name == "ddp" and "terminate called without an active exception" in result.stderr
    assert result.returncode == 0 or aborted, result.stderr
    printed = result.stdout
    first, last = map(float, re.findall(r"^loss (\S+) -> ([\d.]+)", printed, re.MULTILINE)[0])
    assert last < 0.95 * first, printed
    assert len(re.findall(r": True$", printed, re.MULTILINE)) == CHECKS[name], printed
    assert "False" not in printed
