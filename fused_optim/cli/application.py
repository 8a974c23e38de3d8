"""The commands as one typer application, and how their errors become one line and an exit code."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from fused_optim.cli.bench import bench
from fused_optim.cli.check import check
from fused_optim.cli.explain import explain
from fused_optim.cli.info import info
from fused_optim.cli.machine import distribution_version
from fused_optim.cli.main import USAGE, complain
from fused_optim.cli.memory import memory
from fused_optim.cli.output import UsageError, print_text
from fused_optim.cli.train import train

# in the order of the help; the first paragraph of a docstring is a command's line there
COMMANDS: tuple[Callable[..., Any], ...] = (bench, check, explain, info, memory, train)
# the base class of what typer raises for arguments that it cannot parse; it has no public name
ParseError: Any = typer.BadParameter.__bases__[0]


def show_version(asked: bool) -> None:
    """Print the version and end, if ``asked``."""
    if asked:
        version = distribution_version("fused-optim") or "of files that are not installed"
        print_text(f"fused-optim {version}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Fused optimizers for torch: look at, check and measure them on this machine.

    Example: fused-optim info
    """
    if context.invoked_subcommand is None:
        print_text(context.get_help())


def create_application() -> typer.Typer:
    """Return the application with all commands."""
    # help without panels fits a screen, and has no colours in a pipe
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.callback(invoke_without_command=True)(root)
    for command in COMMANDS:
        app.command()(command)
    return app


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    command = typer.main.get_command(create_application())
    try:
        # not command(arguments), which would write its own errors, of several lines
        with command.make_context("fused-optim", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except ParseError as error:
        return complain(f"error: {error.format_message()}", USAGE)
    except UsageError as error:
        return complain(f"error: {error}", USAGE)
    return 0
