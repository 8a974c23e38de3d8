"""Runs that start from the same weights and take every step on the same batch, side by side."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .corpus import Corpus, windows
from .model import GPT, Shape

EPS = torch.finfo(torch.float32).eps
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Task:
    """Data, schedule, device and model size that all runs share."""

    corpus: Corpus
    steps: int
    seed: int
    device: torch.device
    shape: Shape = field(default_factory=Shape)
    batch_size: int = 8
    validation_size: int = 64
    evaluations: int = 20

    def batch(self, step: int) -> Tensor:
        """Return the batch of ``step``; it follows from the seed, so a resumed run repeats it."""
        length = self.shape.context + 1
        seed = self.seed * 1_000_003 + step
        return windows(self.corpus.train, self.batch_size, length, seed).to(self.device)

    def validation(self) -> Tensor:
        """Return the validation windows, [validation_size, context + 1], the same each time."""
        length = self.shape.context + 1
        return windows(self.corpus.validation, self.validation_size, length, 0).to(self.device)

    def learning_rate(self, step: int) -> float:
        """Return the factor of the learning rate: linear warm-up, then half a cosine to a tenth."""
        warmup = min(1.0, (step + 1) / (0.05 * self.steps))
        return warmup * (0.55 + 0.45 * math.cos(math.pi * min(1.0, step / self.steps)))


Update = Callable[[nn.Module, Optimizer], None]


class Run:
    """Model, optimizer and scheduler, with the loss curves.

    Args:
        model: model to train, not shared with other runs.
        optimizer: optimizer of the model's parameters.
        update: function that clips and steps; its time is the optimizer's time.
        task: schedule of the learning rate.
    """

    def __init__(self, model: GPT, optimizer: Optimizer, update: Update, task: Task) -> None:
        self.model = model
        self.optimizer = optimizer
        self.update = update
        self.scheduler = LambdaLR(optimizer, task.learning_rate)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.validation: dict[int, float] = {}

    def step(self, batch: Tensor) -> None:
        """Train on one batch; note the loss before the update and the time of the update."""
        self.optimizer.zero_grad()
        loss = self.model.loss(batch)
        loss.backward()
        self.losses.append(loss.item())
        synchronize(batch.device)
        start = time.perf_counter()
        self.update(self.model, self.optimizer)
        synchronize(batch.device)
        self.seconds.append(time.perf_counter() - start)
        self.scheduler.step()

    @torch.no_grad()
    def evaluate(self, step: int, batch: Tensor) -> None:
        """Note the loss on ``batch`` after ``step`` steps."""
        self.validation[step] = self.model.loss(batch).item()

    def state_dict(self) -> dict[str, Any]:
        """Return what continues this run: model, optimizer and scheduler in torch's own format."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` of any run returned."""
        self.model.load_state_dict(state["model"])
        # optimizers keep the very tensors they are given, and every run needs its own
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.scheduler.load_state_dict(state["scheduler"])


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters: matrices decay, the gains of the norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]


def clip_and_step(model: nn.Module, optimizer: Optimizer) -> None:
    """Clip in one call and update in another, as with torch.optim."""
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()


def step_alone(model: nn.Module, optimizer: Optimizer) -> None:
    """Update with an optimizer that clips by itself."""
    optimizer.step()


class RoundedOtherwise:
    """torch's update as it might have been rounded: the control that shows what rounding does.

    Each step moves every weight by up to one unit in the last place, and the bound of the norm,
    which stands for the norm's own rounding, by up to four.
    """

    def __init__(self, task: Task) -> None:
        self.generator = torch.Generator(task.device).manual_seed(task.seed)
        self.random = random.Random(task.seed)

    @torch.no_grad()
    def __call__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Clip, update and nudge the weights."""
        bound = MAX_GRAD_NORM * (1 + 4 * EPS * self.random.uniform(-1, 1))
        nn.utils.clip_grad_norm_(model.parameters(), bound)
        optimizer.step()
        for weight in model.parameters():
            nudge = torch.empty_like(weight).uniform_(1 - EPS, 1 + EPS, generator=self.generator)
            weight.mul_(nudge)


class Trio(NamedTuple):
    """Three runs to compare: torch, fused_optim, and torch with other rounding."""

    torch: Run
    fused: Run
    control: Run


def start(
    task: Task,
    torch_optimizer: Callable[..., Optimizer],
    fused_optimizer: Callable[..., Optimizer],
    settings: dict[str, Any],
) -> Trio:
    """Give each run a copy of the same weights.

    Args:
        task: data and schedule of the runs.
        torch_optimizer: torch's class, for the runs ``torch`` and ``control``.
        fused_optimizer: class of fused_optim, which clips by itself.
        settings: keyword arguments of both; ``weight_decay`` applies to matrices only.
    """
    torch.manual_seed(task.seed)
    weights = GPT(task.shape).to(task.device)
    options = dict(settings)
    weight_decay = options.pop("weight_decay", 0.0)

    def run(optimizer: Callable[..., Optimizer], update: Update, **extra: Any) -> Run:
        model = copy.deepcopy(weights)
        return Run(model, optimizer(groups(model, weight_decay), **options, **extra), update, task)

    return Trio(
        torch=run(torch_optimizer, clip_and_step),
        fused=run(fused_optimizer, step_alone, max_grad_norm=MAX_GRAD_NORM),
        control=run(torch_optimizer, RoundedOtherwise(task)),
    )


def train(task: Task, runs: Iterable[Run], first: int, last: int) -> Iterator[int]:
    """Take the steps from ``first`` to ``last`` with every run; yield the number done so far."""
    validation = task.validation()
    interval = max(1, task.steps // task.evaluations)
    for done in range(first + 1, last + 1):
        batch = task.batch(done - 1)
        for run in runs:
            run.step(batch)
            if done % interval == 0 or done == last:
                run.evaluate(done, validation)
        yield done
