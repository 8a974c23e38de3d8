"""Session of the example: prepare, train under a progress bar, save and report."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .checkpoint import Checkpoint
from .choices import SETTINGS, optimizer_pair, read_corpus, usable_device
from .model import Shape
from .report import draw, sample, sentence, table
from .training import Task, Trio, start, train
from .verdict import judge

DEFAULTS = Checkpoint(optimizer_name="AdamW", seed=0, steps=500, step=0, state={})
PICTURE = "train_gpt.png"


@dataclass
class Session:
    """Three runs, with their first and last step.

    Attributes:
        name: name of the optimizer.
        task: data and schedule of the runs.
        runs: torch, fused and control runs.
        first: number of steps taken before this session.
        last: number of the last step.
        save: path of the checkpoint, None to write none.
        out: directory of the picture.
    """

    name: str
    task: Task
    runs: Trio
    first: int
    last: int
    save: Path | None
    out: Path

    @property
    def picture(self) -> Path:
        """Path of the picture of the curves."""
        return self.out / PICTURE

    def run(self, console: Console, screen: Console) -> int:
        """Train, save and report; return the exit code.

        Args:
            console: console of the report.
            screen: console of the progress bar, which is shown on a terminal only.
        """
        done = self.train(screen)
        if self.save:
            self.checkpoint(done).save(self.save)
            console.print(f"saved fused_optim's run after step {done}: {self.save}", soft_wrap=True)
        if done < self.last:
            console.print(f"stopped after step {done} of {self.last}")
            return 130
        return 0 if self.report(console) else 1

    def train(self, screen: Console) -> int:
        """Take the steps under a progress bar; return the last one taken, also after Ctrl-C."""
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        done = self.first
        with (
            Progress(
                *columns,
                TimeRemainingColumn(),
                console=screen,
                disable=not screen.is_terminal,
            ) as progress,
            between_steps() as interrupted,
        ):
            bar = progress.add_task("", total=self.last, completed=done)
            for done in train(self.task, self.runs, self.first, self.last):
                losses = f"loss {self.runs.torch.losses[-1]:.4f} | {self.runs.fused.losses[-1]:.4f}"
                progress.update(bar, completed=done, description=losses)
                if interrupted.is_set():
                    break
        return done

    def checkpoint(self, step: int) -> Checkpoint:
        """Return fused_optim's run as it is after ``step`` steps."""
        task = self.task
        return Checkpoint(self.name, task.seed, task.steps, step, self.runs.fused.state_dict())

    def report(self, console: Console) -> bool:
        """Print the table and a sample, save the picture; return whether the curves are one."""
        draw(self.runs, self.name, self.first, self.picture)
        verdict = judge(self.runs, self.first)
        console.print(sample(self.runs.fused.model, self.task.seed, console.encoding))
        console.print(table(self.runs, self.name))
        console.print(f"curves: {self.picture}", highlight=False, soft_wrap=True)
        console.print(sentence(verdict), style="green" if verdict.within_rounding else "bold red")
        return verdict.within_rounding


@contextmanager
def between_steps() -> Iterator[threading.Event]:
    """Let the first Ctrl-C wait for the end of a step, so that all runs are equally far."""
    asked = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def writable(path: Path) -> Path:
    """Return ``path``, a file to be.

    Raises:
        ValueError: it cannot be written; better now than after the training.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--save {path} cannot be written: it must be a file in a writable folder")
    return path


def prepare(options: argparse.Namespace) -> Session:
    """Create a session from the command line; defaults are those of the checkpoint, if any.

    Raises:
        ValueError: an option cannot be used, with the reason.
    """
    saved = Checkpoint.load(options.resume) if options.resume else DEFAULTS
    name = options.optimizer or saved.optimizer_name
    if options.resume and name != saved.optimizer_name:
        raise ValueError(f"--optimizer must be {saved.optimizer_name} to resume this checkpoint")
    steps = options.steps or saved.steps
    last = min(steps, options.until or steps)
    if last <= saved.step:
        raise ValueError(f"--resume: the checkpoint is at step {saved.step} of {last} already")
    device = usable_device(options.device)
    pair = optimizer_pair(name, options.backend, device)
    seed = saved.seed if options.seed is None else options.seed
    task = Task(read_corpus(options.text, Shape().context), steps, seed, device)
    runs = start(task, *pair, SETTINGS.get(name, {}))
    for run in runs if options.resume else ():
        saved.restore(run)
    options.out.mkdir(parents=True, exist_ok=True)
    save = options.save and writable(options.save)
    return Session(name, task, runs, saved.step, last, save, options.out)
