"""Entry point of the command line; it runs without typer and rich, to say that they are missing."""

import importlib
import os
import sys
from collections.abc import Sequence

PACKAGES = ("rich", "typer")
USAGE, INTERRUPTED = 2, 130  # exit codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: arguments without the name of the program; default: those of the process.

    Returns:
        0 for success, 1 if the command found what it looks for (as failed checks), 2 if it cannot
        be run as asked, 130 after Ctrl-C.
    """
    try:
        missing = find_missing(PACKAGES)
        if missing:
            return complain(f'{missing} is not installed: pip install "fused-optim[cli]"', USAGE)
        from fused_optim.cli.application import run

        code = run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return complain("stopped by Ctrl-C", INTERRUPTED)
    except BrokenPipeError:
        # the reader has gone, as in `fused-optim explain | head`; nor can Python flush at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def find_missing(packages: Sequence[str]) -> str | None:
    """Return the first package that is not installed, or None."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            return error.name
    return None


def complain(message: str, code: int) -> int:
    """Write one line to stderr; return ``code``."""
    sys.stderr.write(f"fused-optim: {' '.join(message.split())}\n")
    return code
