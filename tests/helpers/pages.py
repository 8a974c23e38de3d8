"""The code blocks of Markdown pages, and how each is run.

Python blocks of a page are one program. A comment before a block changes that:

- ``<!-- setup`` ... ``-->``: code that a reader need not see, run where it stands;
- ``<!-- raises -->``: the block raises what the next block has, where ``...`` is any text;
- ``<!-- needs: ... -->``: the block is not run, for the reason that is given.

A block in ``bash`` is a list of commands, one in ``console`` has their output too. Those of
``fused-optim`` are run, all others need a reason.
"""

import builtins
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PARTS = re.compile(
    r"^[ ]*<!-- (?P<comment>setup\n.*?|raises|needs: .*?) ?-->$"
    r"|^(?P<indent>[ ]*)```(?P<language>[\w{}-]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)


class Block(NamedTuple):
    """A code block of a page.

    Attributes:
        line: number of its first line.
        language: ``"python"``, ``"bash"``, ``"diff"``, ``"text"``, a directive of MyST or ``""``.
        code: its text, without the indentation of its list.
        mark: ``"setup"``, ``"raises"``, the reason of ``"needs"``, or ``""``.
    """

    line: int
    language: str
    code: str
    mark: str


def list_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page; a comment belongs to the block that follows it."""
    mark = ""
    for found in PARTS.finditer(text):
        comment = found["comment"]
        if comment is None:
            line = text.count("\n", 0, found.start("code")) + 1
            code = dedent(found["code"], found["indent"])
            yield Block(line, found["language"], code, mark)
            mark = ""
        elif comment.startswith("setup"):
            line = text.count("\n", 0, found.start("comment")) + 2
            indent = found[0][: len(found[0]) - len(found[0].lstrip())]
            yield Block(line, "python", dedent(comment.removeprefix("setup\n"), indent), "setup")
        else:
            mark = comment


def dedent(code: str, indent: str) -> str:
    """Return ``code`` without ``indent`` at the beginning of its lines."""
    return "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))


def run_page(path: Path) -> int:
    """Run the Python blocks of a page, in order and in one namespace; return their number.

    Raises:
        AssertionError: a block that should raise an error does not, or raises another.
    """
    names, count = {"__name__": "page"}, 0
    blocks = list(list_blocks(path.read_text()))
    for i, block in enumerate(blocks):
        if block.language != "python" or block.mark.startswith("needs"):
            continue
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        count += block.mark != "setup"
        with warnings.catch_warnings():
            if block.mark == "raises":
                kind, pattern = read_message(blocks[i + 1])
                with pytest.raises(kind, match=pattern):
                    exec(code, names)
            else:
                exec(code, names)
    return count


def read_message(block: Block) -> tuple[type[BaseException], str]:
    """Return the class of an error and its message, as a pattern for the whole of it."""
    name, _, message = block.code.strip().partition(": ")
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    return getattr(builtins, name), rf"(?s)\A{pattern}\Z"


def list_commands(block: Block) -> list[list[str]]:
    """Return the commands of a block, each as its words; in a ``console`` they follow a ``$``."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]
