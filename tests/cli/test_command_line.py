"""What holds for every command: help, --json, errors of one line, Ctrl-C, pipes, missing packages.

Faults tried by hand: another exit code of Ctrl-C; a message of several lines; stdout not flushed
before the end; rich imported before it is checked; help in panels; colours in a pipe; a number and
an option of the page changed.
"""

import json
import os
import pty
import re
import runpy
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest
from helpers.command_line import NAMES, PAGE, fails, list_examples, parse, run
from helpers.models import make_model_small
from helpers.processes import ROOT, end_child

import _fused_optim_command
from fused_optim.cli import application, checkout, main
from fused_optim.cli.output import UsageError

COLUMNS, LINES = 80, 24  # a screen
# for each command, arguments that take little time
QUICK = {
    "bench": ("--smoke", "--model", "gpt-1m", "--rival", "torch fused"),
    "check": ("--quick", "--optimizer", "Lion", "--against", "reference"),
    "explain": ("--model", "gpt2"),
    "info": (),
    "memory": ("--model", "gpt2", "--weights", "split"),
    "train": ("--steps", "2", "--text", ROOT / "examples/gpt/training.py", "--out", "OUT"),
}
BAD = {
    "no-such-command": "no-such-command",
    "info --nonsense": "--nonsense",
    "info extra": "extra",
    "memory --model": "--model",
    "memory --model nonsense": "--model: must be one of gpt2, ",
    "memory --optimizer nonsense": "--optimizer must be one of ASGD, ",
    "memory --dtype int8": "--dtype must be one of float32, ",
    "memory --weights nonsense": "--weights must be one of plain, ",
    "memory --weights split --dtype fp16": "--weights split is not for --dtype float16",
    "memory --states nonsense": "--states must be one of param, ",
    "memory --set lr": "--set must be NAME=VALUE, got 'lr'",
    "memory --set lr=-1": "lr must be >= 0, got -1",
    "memory --set betas=1": "betas",
    "memory --set nonsense=1": "unexpected keyword argument 'nonsense'",
    "memory --set ema_decay=0.9 --ema-decay 0.9": "--set ema_decay: it was given already",
    "memory --ema-decay many": "--ema-decay",
    "memory --plot missing/out.png": "--plot missing/out.png cannot be written",
    "memory --plot out.nonsense": "--plot out.nonsense: its ending must be one of ",
    "explain --device nonsense": "--device nonsense cannot be used",
    "explain --states nonsense": "states must be one of 'param', ",
    "explain --backend nonsense": "backend must be one of 'auto', ",
    "explain --max-grad-norm -1": "max_grad_norm must be",
    "train --steps 0": "--steps",
    "train --text missing.txt": "--text missing.txt cannot be read",
    "train --optimizer Lion": "--optimizer must be one of ",
    "bench --threads 2,0": "--threads must be numbers >= 1 with commas between, got '2,0'",
    "bench --model nonsense": "--model must be one of one-50m, ",
    "bench --rival nonsense": "--rival must be one of torch for-loop, ",
    "bench --rival torch-optimi": "--rival torch-optimi cannot be timed: ",
    "bench --optimizer Lion": "--optimizer must be one of AdamW, ",
}
# torch has threads, none of which matters to a child that computes nothing
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def start(*arguments, **options):
    """Start ``python -m fused_optim`` as a user does."""
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "NO_COLOR")}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm"}
    command = [sys.executable, "-m", "fused_optim", *arguments]
    # what runs in the background of a shell ignores SIGINT, and hands that down
    return subprocess.Popen(command, cwd=ROOT, env=env, preexec_fn=heed_interrupts, **options)


def heed_interrupts():
    """Let SIGINT end this process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("name", [None, *NAMES])
def test_help_fits_a_screen_and_shows_an_example(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    code, shown, err = run(capsys, *filter(None, [name]), "--help")
    assert (code, err) == (0, "")
    lines = shown.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    example = re.search(r"Example: fused-optim (.*?)\n\n", shown, re.S)[1]
    assert parse(shlex.split(example)) is not None
    if name is not None:
        assert shlex.split(example)[0] == name
        assert "--json" in shown
    else:
        assert all(f"\n  {command} " in shown for command in NAMES)
        assert run(capsys) == (0, shown, "")


@pytest.mark.parametrize("name", NAMES)
def test_json_is_all_that_is_written(name, capsys, tmp_path, monkeypatch):
    make_model_small(monkeypatch, checkout.load_module("train", "examples.gpt.model"))
    arguments = [tmp_path if argument == "OUT" else argument for argument in QUICK[name]]
    code, out, err = run(capsys, name, *arguments, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(line, capsys):
    assert BAD[line] in fails(capsys, *shlex.split(line))


def test_version(capsys):
    code, out, err = run(capsys, "--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"fused-optim \d+\.\d+\.\d+.*\n", out)


def test_interrupts_and_mistakes_within_a_command(capsys, monkeypatch):
    """Whatever a command does at that moment, also without its own handler."""

    def command(kind: str) -> None:
        raise {"interrupt": KeyboardInterrupt, "mistake": UsageError("two\nlines")}[kind]

    monkeypatch.setattr(application, "COMMANDS", (command, *application.COMMANDS))
    assert run(capsys, "command", "interrupt") == (130, "", "fused-optim: stopped by Ctrl-C\n")
    assert fails(capsys, "command", "mistake") == "fused-optim: error: two lines\n"


def test_an_interrupt_while_torch_is_imported(capsys, monkeypatch):
    class Interrupt:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "fused_optim.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "fused_optim.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupt, *sys.meta_path])
    assert _fused_optim_command.main() == 130
    assert capsys.readouterr().err == "fused-optim: stopped by Ctrl-C\n"


@pytest.mark.parametrize("package", main.PACKAGES)
def test_without_the_packages_of_the_extra(package, capsys, monkeypatch):
    monkeypatch.setitem(
        sys.modules, package, None
    )  # Python's way of saying there is no such module
    message = f'fused-optim: {package} is not installed: pip install "fused-optim[cli]"\n'
    assert run(capsys, "info") == (2, "", message)


def test_without_matplotlib(capsys, monkeypatch):
    for name in {"matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))}:
        monkeypatch.setitem(sys.modules, name, None)
    message = fails(capsys, "memory", "--plot", "out.png")
    assert '--plot needs matplotlib: pip install "fused-optim[cli]"' in message


@pytest.fixture
def run_anew():
    """Return a function that runs ``python -m fused_optim`` in a child, with pipes.

    The child imports the command line and its packages anew, but not torch, which takes seconds.
    """

    def run(*arguments, modules=(), **variables):
        streams = [os.pipe(), os.pipe()]
        child = os.fork()
        if child == 0:
            become(arguments, modules, variables, [write for _, write in streams])
        texts = []
        for read, write in streams:
            os.close(write)
            with open(read) as file:
                texts.append(file.read())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *texts

    return run


def become(arguments, modules, variables, outputs):
    """Run the command in this child of the process of the tests, and end it."""
    for descriptor, write in enumerate(outputs, 1):
        os.dup2(write, descriptor)
    code = 1
    with open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:
        try:
            os.environ |= variables
            own = re.compile(r"(rich|typer|fused_optim\.cli|_fused_optim_command)(\.|$)")
            for name in filter(own.match, [*sys.modules]):
                del sys.modules[name]
            # Python's way of saying that there are no such modules
            sys.modules |= dict.fromkeys(modules)
            sys.argv = ["fused-optim", *arguments]
            # not as a module: pytest's loader of a package with a plugin has no code to run
            runpy.run_path(str(ROOT / "fused_optim" / "__main__.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            end_child(code)


@FORKS
def test_nothing_of_the_extra_is_imported_before_it_is_checked(run_anew):
    message = 'fused-optim: rich is not installed: pip install "fused-optim[cli]"\n'
    assert run_anew("info", modules=("typer", "rich")) == (2, "", message)


@FORKS
def test_a_pipe_has_no_colours_and_no_progress_bar(run_anew):
    """Also where the environment asks for colours; nor is a wide table cut."""
    env = {"FORCE_COLOR": "1", "COLUMNS": "40", "TTY_COMPATIBLE": "1", "GITHUB_ACTIONS": "true"}
    code, out, err = run_anew("memory", "--weights", "master", "--model", "gpt2", **env)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    (row,) = (line for line in out.splitlines() if line.startswith("│ master  │ fp32 "))
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["master", "fp32", "0.23", "0.23", "0.46", "0.93", "1.85", "16.00", "30.00"]


def test_a_reader_that_goes_is_no_error(capsys, monkeypatch):
    """As in ``fused-optim info --json | head -1``: nothing is left for Python to flush."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main.main(["info", "--json"]) == 1
    assert capsys.readouterr().err == ""


def test_ctrl_c_under_a_progress_bar():
    """On a terminal there is a bar; Ctrl-C removes it and leaves one line."""
    terminal, end = pty.openpty()
    shown = b""
    deadline = time.monotonic() + 120
    # six comparisons, which last longer than a busy machine may take to draw the first bar
    models = (
        "--model",
        "tiny-1000",
        "--model",
        "gpt-1m",
        "--model",
        "gpt-0.8m",
        "--threads",
        "2,1",
    )
    with start("bench", *models, stdout=subprocess.PIPE, stderr=end) as process:
        os.close(end)
        while b"/6" not in shown:
            assert time.monotonic() < deadline
            if select.select([terminal], [], [], 1.0)[0]:
                shown += os.read(terminal, 1 << 16)
        process.send_signal(signal.SIGINT)
        shown += read_rest(terminal)
        assert process.stdout.read() == b""
    os.close(terminal)
    assert process.returncode == 130
    # without the escape sequences, which draw and remove the bar
    lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).replace(b"\r", b"\n").split(b"\n")
    left = [line for line in lines if line.strip() and b"/6" not in line]
    assert left == [b"fused-optim: stopped by Ctrl-C"]


def read_rest(terminal):
    """Return what is written to a terminal until the last process closes it."""
    rest = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # on Linux, the end
            return rest
        if not part:
            return rest
        rest += part


def test_the_page_names_every_command_and_its_commands_can_be_parsed():
    examples = [arguments for arguments, _ in list_examples(PAGE.read_text())]
    assert {arguments[0] for arguments in examples} == set(NAMES)
    for arguments in examples:
        parse(arguments)


def test_what_the_page_prints_is_what_the_commands_print(capsys):
    """Of the commands whose output is the same on every machine."""
    examples = list_examples(PAGE.read_text())
    compared = [(a, printed) for a, printed in examples if a[0] == "memory" or "meta" in a]
    assert len(compared) >= 2
    for arguments, printed in compared:
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (0, "")
        assert [line.rstrip() for line in out.splitlines()] == printed.rstrip("\n").splitlines()
