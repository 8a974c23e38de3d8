"""The output of all commands: tables, JSON, progress bars, plots, and errors of one line."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 10_000  # columns: a table in a file or a pipe is not cut


class UsageError(Exception):
    """A command cannot be run as asked; its message is printed on one line, with exit code 2."""


def console(stderr: bool = False, wide: bool = False) -> Console:
    """Return a console that has colours on a terminal only.

    Args:
        stderr: True for stderr, False for stdout.
        wide: True to cut no line that is not for a terminal.
    """
    file = sys.stderr if stderr else sys.stdout
    terminal = file.isatty()
    return Console(
        file=file,
        force_terminal=terminal,
        force_jupyter=False,
        width=WIDE if wide and not terminal else None,
        highlight=False,
    )


def print_text(text: str) -> None:
    """Print lines, in which brackets are not markup."""
    console().print(Text(text), soft_wrap=True)


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", names: int = 1
) -> None:
    """Print a table.

    Args:
        heads: head of each column.
        rows: cells of each row.
        title: line above the table.
        names: number of the first columns that are words, to the left; the others are numbers.
    """
    # as Text, in which brackets are not markup
    table = Table(title=Text(title) if title else None, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if index < names else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console(wide=True).print(table)


def print_json(document: Any) -> None:
    """Print one JSON document: all that a command with ``--json`` writes to stdout.

    Raises:
        ValueError: a number is Inf or NaN, which JSON does not have.
    """
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


@contextmanager
def progress_bar(total: int | None = None) -> Iterator["ProgressBar"]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal.

    Args:
        total: number of parts of the work; None if it is not known yet.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    screen = console(stderr=True)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as shown:
        yield ProgressBar(shown, total)


class ProgressBar:
    """A bar of :func:`progress_bar`."""

    def __init__(self, shown: Progress, total: int | None) -> None:
        self._shown = shown
        self._task = shown.add_task("", total=total)

    def describe(self, text: str) -> None:
        """Show ``text`` behind the bar: what is being done."""
        self._shown.update(self._task, description=text)

    def advance(self, parts: int = 1) -> None:
        """Count ``parts`` as done."""
        self._shown.advance(self._task, parts)


def check_plot(path: Path | None) -> None:
    """Check that a plot can be written to ``path``, before the work for it; None is no plot.

    Raises:
        UsageError: there is no such folder, matplotlib has no such format or is not installed.
    """
    if path is None:
        return
    check_file("--plot", path)
    formats = sorted(new_figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in formats:
        raise UsageError(f"--plot {path}: its ending must be one of {', '.join(formats)}")


def check_file(option: str, path: Path) -> None:
    """Check that ``path`` can be a file.

    Raises:
        UsageError: it is a folder, or its folder does not exist.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path} cannot be written: it must be a file in a folder")


def new_figure(width: float = 8.0, height: float = 4.5) -> "Figure":
    """Return a figure of matplotlib that needs no display; sizes are in inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = '--plot needs matplotlib: pip install "fused-optim[cli]"'
        raise UsageError(message) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_plot(figure: "Figure", path: Path) -> None:
    """Write a figure in the format that the ending of ``path`` names.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise UsageError(f"--plot {path} cannot be written: {error.strerror}") from error


def one_line(error: Exception) -> str:
    """Return the message of ``error`` on one line; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Write a number with its noun; ``nouns`` is the plural if it is not made by an s."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def finite(number: float) -> float | None:
    """Return a number for JSON, which has no Inf and no NaN: None for these."""
    return float(number) if math.isfinite(number) else None
