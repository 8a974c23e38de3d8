"""Several processes on gloo that run many checks after one start.

A module of this folder with the name ``MODULE`` has functions ``check_...(world)``. Every process
runs all of them in order, and stops at the first that fails.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

SIZE = 4  # processes
MODULES = ("updates", "norms", "checkpoints", "torch_checkpoints", "engines", "backward")
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


def load_checks(name: str) -> dict[str, Any]:
    """Return the checks of a module of this folder by name, in their order."""
    module = importlib.import_module(f"distributed.{name}")
    return {key: value for key, value in vars(module).items() if key.startswith("check_")}


def work(rank: int, name: str, folder: str) -> None:
    """Run the checks in one process; write what failed to ``folder``."""
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", address, limit, SIZE, rank)
    outcome = {}
    try:
        shared = Path(folder) / "shared"
        shared.mkdir(exist_ok=True)
        world = make_world(rank, shared)
        for key, check in load_checks(name).items():
            outcome[key] = "not finished"
            check(world)
            dist.barrier()
            outcome[key] = ""
    finally:
        if sys.exc_info()[0] is not None:
            outcome["error"] = traceback.format_exc()
        (Path(folder) / f"{rank}.json").write_text(json.dumps(outcome))
        # no orderly end: a process may still wait for one that failed, and a thread of gloo that
        # frees a tensor while the interpreter exits would abort it
        os._exit(0)


def run_checks(name: str, timeout: float = 170) -> dict[str, str]:
    """Run the checks of a module in new processes; return the error of each, "" for none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "distributed.processes", name, folder]
        paths = [str(TESTS), str(TESTS.parent)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment
        )
        errors: dict[str, str] = {}
        for rank in range(SIZE):
            path = Path(folder) / f"{rank}.json"
            outcome = json.loads(path.read_text()) if path.exists() else {"error": done.stderr}
            for key, error in outcome.items():
                errors[key] = errors.get(key, "") + (f"rank {rank}: {error}\n" if error else "")
    return errors


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, tuple(sys.argv[1:]), SIZE)
