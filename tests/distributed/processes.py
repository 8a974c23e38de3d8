"""Several processes on gloo that run all checks after one start, which takes seconds.

A module of this folder with a name in ``MODULES`` has functions ``check_...(world)``. Every process
runs those of all modules in order, and stops at the first that fails.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

SIZE = 4  # processes
MODULES = (
    "updates",
    "norms",
    "checkpoints",
    "torch_checkpoints",
    "engines",
    "muon",
    "normuon",
    "backward",
)
Check = Callable[["World"], None]
# engines and features by module and name of the check
COVERED: dict[tuple[str, str], list[tuple[str, str]]] = {}
TESTS = Path(__file__).parent.parent


def covers(engines: str, *features: str) -> Callable[[Check], Check]:
    """Name what a check tests, for the table in docs/distributed.md.

    Args:
        engines: names of the engines, with ", " between them.
        features: names of the features.
    """

    def mark(check: Check) -> Check:
        COVERED[check.__module__, check.__name__] = [
            (engine, feature) for engine in engines.split(", ") for feature in features
        ]
        return check

    return mark


class World(NamedTuple):
    """The process in which a check runs, and the meshes that it may use.

    Attributes:
        rank: number of this process.
        folder: folder that all processes share, empty before the first check.
        line: mesh of all processes.
        square: mesh of two by two processes, with the dims ``replicate`` and ``shard``.
        parts: mesh of the first n processes for each n; None on the other processes.
    """

    rank: int
    folder: Path
    line: DeviceMesh
    square: DeviceMesh
    parts: dict[int, DeviceMesh | None]


def make_world(rank: int, folder: Path) -> World:
    """Create the meshes; collective over all processes."""
    parts = {}
    for count in range(1, SIZE + 1):
        ranks = list(range(count))
        group = dist.new_group(ranks)
        parts[count] = DeviceMesh.from_group(group, "cpu", ranks) if rank < count else None
    names = ("replicate", "shard")
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
    return World(rank, folder, init_device_mesh("cpu", (SIZE,)), square, parts)


def load_checks(names: Sequence[str]) -> dict[tuple[str, str], Check]:
    """Return the checks of modules of this folder by module and name, in their order."""
    modules = [importlib.import_module(f"distributed.{name}") for name in names]
    return {
        (module.__name__, key): value
        for module in modules
        for key, value in vars(module).items()
        if key.startswith("check_")
    }


def work(rank: int, folder: Path, names: Sequence[str]) -> None:
    """Run the checks in one process; write what failed to ``folder``."""
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", address, limit, SIZE, rank)
    outcome: list[tuple[tuple[str, str], str]] = []
    try:
        shared = folder / "shared"
        shared.mkdir(exist_ok=True)
        world = make_world(rank, shared)
        for key, check in load_checks(names).items():
            outcome.append((key, "not finished"))
            check(world)
            dist.barrier()
            outcome[-1] = (key, "")
    finally:
        if sys.exc_info()[0] is not None:
            outcome.append((("", "error"), traceback.format_exc()))
        (folder / f"{rank}.json").write_text(json.dumps(outcome))
        # no orderly end: a process may still wait for one that failed, and a thread of gloo that
        # frees a tensor while the interpreter exits would abort it
        os._exit(0)


def run_checks(names: Sequence[str] = MODULES, timeout: float = 600) -> dict[tuple[str, str], str]:
    """Run the checks of modules in new processes.

    Returns:
        The error of each check by module and name, "" for none.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    errors: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        processes = []
        for rank in range(SIZE):
            command = [sys.executable, "-m", "distributed.processes", str(rank), name, *names]
            output = stack.enter_context((folder / f"{rank}.txt").open("w"))
            processes.append(
                subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            )
            stack.callback(processes[-1].kill)
        for rank, process in enumerate(processes):
            process.wait(timeout)
            path = folder / f"{rank}.json"
            printed = [[("", "error"), (folder / f"{rank}.txt").read_text()]]
            outcome = json.loads(path.read_text()) if path.exists() else printed
            for key, error in outcome:
                errors.setdefault(tuple(key), "")
                errors[tuple(key)] += f"rank {rank}: {error}\n" if error else ""
    return errors


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
