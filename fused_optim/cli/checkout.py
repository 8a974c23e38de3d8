"""Modules that a clone of the repository has and an installation does not: examples, benchmarks."""

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import fused_optim
from fused_optim.cli.output import UsageError


def find_folder(package: str) -> Path | None:
    """Return the clone that has the folder ``package``, or None.

    It is the one that this installation is of (``pip install -e``), or else the current folder.
    """
    for folder in (Path(fused_optim.__file__).resolve().parent.parent, Path.cwd()):
        # the current folder must be a clone, not any folder with examples
        files = (f"{package}/__init__.py", "fused_optim/cli/checkout.py")
        if all((folder / file).is_file() for file in files):
            return folder
    return None


def load_module(command: str, name: str) -> ModuleType:
    """Import a module of the clone, as ``"benchmarks.steps"``.

    Args:
        command: command that needs the module, for the message.
        name: name of the module; its package is a folder of the clone.

    Raises:
        UsageError: there is no clone, or a package that the module imports is not installed.
    """
    package = name.partition(".")[0]
    folder = find_folder(package)
    if folder is None:
        raise UsageError(
            f"{command} needs {package}/ of the repository, which is not installed: run it in a "
            "clone"
        )
    if package not in sys.modules:
        spec = PathFinder.find_spec(package, [str(folder)])
        if spec is None or spec.loader is None:
            raise UsageError(f"{folder / package} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(package):
            raise
        raise UsageError(
            f"{command} needs {error.name}, which is not installed: "
            'pip install "fused-optim[cli,bench]"'
        ) from error
