"""A training loop with checkpoint and resume: ``python -m examples.recipes.training_loop``.

The loop is the same for a regression (mean squared error, on scikit-learn's diabetes data) and for
a classification (cross-entropy, on its digits); only the loss differs, and the number of outputs.

- An epoch goes over the batches in a new order: ``zero_grad``, loss, ``backward``, ``step``.
- **Evaluation** is in ``eval()`` mode, without gradients, on examples that no step has seen.
- A **checkpoint** has all that the rest of the training depends on: model, optimizer, schedule,
  number of epochs, and the state of the random generator, from which the order of batches and
  dropout come. It is written beside the old one and renamed, so that a crash leaves one of them.
- **Resume** builds everything anew, with other random weights, and loads. The plot has the losses
  of a training without a break, and those of a resumed one on them, from the dashed line on: they
  are the same bits. Without the state of the random generator they would be others.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn import datasets
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fused_optim import AdamW

from .common import Split, iterate_batches, load_digits, make_net, print_table, save, split, start

EPOCHS, BREAK, RATE, BATCH = 20, 8, 1e-2, 64


class Task(NamedTuple):
    """Examples, a loss of outputs and targets, and the number of outputs."""

    data: Split
    form_loss: Callable[[Tensor, Tensor], Tensor]
    outputs: int


class Training:
    """A model with its optimizer and schedule, and the losses so far."""

    def __init__(self, task: Task) -> None:
        self.task = task
        features = task.data.inputs.shape[1]
        self.model = make_net(features, 32, 32, task.outputs).insert(2, nn.Dropout(0.1))
        self.optimizer = AdamW(
            self.model.parameters(), lr=RATE, weight_decay=0.1, max_grad_norm=1.0
        )
        self.schedule = lr_scheduler.CosineAnnealingLR(self.optimizer, EPOCHS)
        self.losses: list[tuple[float, float]] = []  # training and held out, by epoch

    def train_epoch(self) -> None:
        """Train for an epoch, evaluate, and let the schedule set the next rate."""
        self.model.train()
        total = 0.0
        for inputs, targets in iterate_batches(self.task.data, BATCH):
            self.optimizer.zero_grad()
            loss = self.task.form_loss(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(targets)
        self.schedule.step()
        self.losses.append((total / len(self.task.data.targets), self.evaluate()))

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the loss on held-out examples."""
        self.model.eval()
        outputs = self.model(self.task.data.held_out_inputs)
        return self.task.form_loss(outputs, self.task.data.held_out_targets).item()

    def save(self, path: Path) -> None:
        """Write a checkpoint beside ``path``, and rename it."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        parts |= {"losses": self.losses, "generator": torch.get_rng_state()}
        torch.save(parts, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        parts = torch.load(path)
        for name in PARTS:
            getattr(self, name).load_state_dict(parts[name])
        self.losses = parts["losses"]
        torch.set_rng_state(parts["generator"])


PARTS = ("model", "optimizer", "schedule")  # of a training, with a state_dict


def load_diabetes() -> Split:
    """Return 442 patients with 10 values each, and the progress of the disease, standardized."""
    inputs, progress = (torch.tensor(x).float() for x in datasets.load_diabetes(return_X_y=True))
    inputs = inputs / inputs.std(0)
    return split(inputs, ((progress - progress.mean()) / progress.std()).unsqueeze(1), 142)


def run(task: Task, seed: int, path: Path) -> dict[str, Any]:
    """Train without a break, and again from a checkpoint."""
    torch.manual_seed(seed)
    whole = Training(task)
    for epoch in range(EPOCHS):
        if epoch == BREAK:
            whole.save(path)
        whole.train_epoch()
    torch.manual_seed(seed + 1)  # as in a new process: other weights, other random numbers
    resumed = Training(task)
    resumed.load(path)
    while len(resumed.losses) < EPOCHS:
        resumed.train_epoch()
    return {"whole": whole, "resumed": resumed}


def draw(runs: dict[str, dict[str, Any]]) -> Figure:
    """Draw the losses of the training without a break, and those of the resumed one on them."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (name, run_) in zip(figure.subplots(1, 2), runs.items(), strict=True):
        for i, kind in enumerate(("training", "held out")):
            whole, resumed = ([pair[i] for pair in run_[key].losses] for key in run_)
            axes.plot(range(1, EPOCHS + 1), whole, color=f"C{i}", label=kind)
            later = range(BREAK + 1, EPOCHS + 1)
            axes.plot(later, resumed[BREAK:], "o", ms=4, color=f"C{i}", label=f"{kind}, resumed")
        axes.axvline(BREAK + 0.5, color="0.5", ls="--", lw=1)
        axes.set(title=name, xlabel="epoch", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run both tasks; return the trainings without a break, and the resumed ones."""
    options = start(__doc__, argv)
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = {
        "mean squared error": Task(load_diabetes(), nn.functional.mse_loss, 1),
        "cross-entropy": Task(load_digits(), nn.functional.cross_entropy, 10),
    }
    path = options.out / "training_loop.pt"
    runs = {name: run(task, options.seed, path) for name, task in tasks.items()}
    rows = []
    for name, run_ in runs.items():
        whole, resumed = run_["whole"].losses, run_["resumed"].losses
        rows.append((name, *whole[0], *whole[-1], "the same" if whole == resumed else "others"))
    columns = ("loss", "training, first", "held out", "training, last", "held out", "resumed")
    print_table(f"Losses of {EPOCHS} epochs, and of a training resumed at {BREAK}", columns, rows)
    save(draw(runs), options, "training_loop")
    return runs


if __name__ == "__main__":
    main()
