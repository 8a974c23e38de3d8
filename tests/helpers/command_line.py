"""Run ``fused-optim`` in this process, and read its help and its page in the docs."""

import re
import shlex
from pathlib import Path

import typer

from fused_optim.cli import application
from fused_optim.cli.main import main

PAGE = Path(__file__).parent.parent.parent / "docs" / "command-line.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
PROMPT = "$ fused-optim "
NAMES = [command.__name__ for command in application.COMMANDS]


def run(capsys, *arguments):
    """Run a command; return its exit code, stdout and stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def fails(capsys, *arguments):
    """Return the one line on stderr of a command that must fail as a user's mistake."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("fused-optim: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err


def parse(arguments):
    """Parse a command line without running the command; raise if it has a wrong option."""
    group = typer.main.get_command(application.create_application())
    command = group.commands[arguments[0]]
    return command.make_context(arguments[0], list(arguments[1:])).params


def list_examples(text):
    """Yield the arguments of each command in the code blocks of a page, and what it prints."""
    for block in BLOCK.findall(text):
        for part in block.split(PROMPT)[1:]:
            line, _, printed = part.partition("\n")
            yield shlex.split(line), printed
