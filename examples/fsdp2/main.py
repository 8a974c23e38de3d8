"""Command line of the example: train, save, resume and compare."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from examples.gpt.corpus import Corpus, standard_library
from examples.gpt.model import Shape
from examples.gpt.training import Task

from . import checkpoints
from .training import ShardedTraining, compare

BATCH_SIZE = 12  # of all processes together: 1, 2, 3, 4, 6 or 12 of them have equal shares


def create_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="train_fsdp2.py",
        description="Train a small GPT sharded by FSDP2, with checkpoints.",
    )
    add = parser.add_argument
    add("--steps", type=int, default=40, help="length of the training (default 40)")
    add("--save-every", type=int, help="steps between checkpoints (default: one, in the middle)")
    add("--out", type=Path, default=Path("out/fsdp2"), help="for checkpoints and losses.json")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--compare", action="store_true", help="compare the losses with those of one process")
    return parser


def start_processes() -> DeviceMesh:
    """Connect the processes that torchrun has started; return the mesh of all of them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return init_device_mesh(device, (dist.get_world_size(),))


def create_task(steps: int, device: str) -> Task:
    """Return data, schedule and model size: those of ``python -m examples.gpt``, a larger batch."""
    corpus = Corpus.split(standard_library(), Shape().context)
    return Task(corpus, steps, 0, torch.device(device), batch_size=BATCH_SIZE)


def train(training: ShardedTraining, folder: Path, save_every: int) -> None:
    """Take the remaining steps; save after every ``save_every`` of them, but not after the last."""
    steps = training.task.steps
    while training.step < steps:
        training.take_step()
        if training.step % save_every == 0 and training.step < steps:
            checkpoints.save(folder, training.step, steps, {"training": training})


def report(training: ShardedTraining, folder: Path, compares: bool) -> bool:
    """Write and print the losses; return False if they differ from those of one process."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.replace(folder / "losses.json", json.dumps(training.losses.tolist()))
    first, last = training.losses[0].item(), training.losses[-1].item()
    print(f"{training.mesh.size()} processes: loss {first:.3f} to {last:.3f}", flush=True)
    if not compares:
        return True
    apart, allowed = compare(training.task, training.losses)
    equal = apart <= allowed
    words = "equal within rounding" if equal else "DIFFERENT"
    print(f"one process: {words}, {apart:.1e} apart, {allowed:.1e} allowed", flush=True)
    return equal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example in one of the processes; return its exit code."""
    options = create_parser().parse_args(arguments)
    try:
        found = checkpoints.find_latest(options.out) if options.resume else None
    except ValueError as error:
        raise SystemExit(f"--resume: {error}") from error
    mesh = start_processes()
    if BATCH_SIZE % mesh.size():
        raise SystemExit(f"the number of processes must divide {BATCH_SIZE}, got {mesh.size()}")
    steps = found.steps if found else options.steps
    training = ShardedTraining(create_task(steps, mesh.device_type), mesh)
    if found:
        checkpoints.load(found, {"training": training})
    train(training, options.out, options.save_every or max(1, steps // 2))
    equal = report(training, options.out, options.compare) if dist.get_rank() == 0 else True
    dist.barrier()  # no process ends before the comparison does
    dist.destroy_process_group()
    return 0 if equal else 1
