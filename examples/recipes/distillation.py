"""Distillation, and shared weights: ``python -m examples.recipes.distillation``.

A teacher learns from all 1,297 digits. Three students of one architecture see 60 of them only:

- **labels**: cross-entropy with the right digit;
- **teacher**: cross-entropy with the teacher's probabilities at temperature ``T``. Scores are
  divided by ``T`` before the softmax, of teacher and student: the higher ``T``, the more shows of
  how alike the teacher finds the wrong digits, which one label does not tell. The gradients shrink
  by ``1 / T**2``, so the loss is multiplied by ``T**2``; it then weighs as much as with ``T = 1``;
- **teacher, shared weights**: the same, but one hidden layer is used three times in the place of
  three layers.

A weight that is used in several places is one parameter: ``parameters()`` lists it once, autograd
adds up the gradients of its uses, and the optimizer has one state for it and updates it once. So
the shared student has fewer parameters and bytes of state (table), and its layers stay the same.
The plots have the share of right answers on held-out digits, by epoch and by temperature: taught
students do better than the one with labels, the more so with a temperature above 1.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fused_optim import AdamW

from .common import Split, evaluate, load_digits, make_net, print_table, save, start, train_epoch

EPOCHS, EXAMPLES, RATE, WIDTH, USES = 60, 60, 3e-3, 32, 3
TEMPERATURE, TEMPERATURES = 4.0, (1.0, 2.0, 4.0, 8.0)


class Student(nn.Module):
    """A net with three hidden layers, which may be one layer used three times."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        hidden = nn.Linear(WIDTH, WIDTH)
        others = [hidden if shared else copy.deepcopy(hidden) for _ in range(USES - 1)]
        self.hidden = nn.ModuleList([hidden, *others])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores [n, 10] of digits [n, 64]."""
        values = self.first(inputs).relu()
        for layer in self.hidden:
            values = values + layer(values).relu()
        return self.head(values)


def form_distillation_loss(scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
    """Return the divergence from the teacher's probabilities at a temperature, times its square."""
    soft = (scores / temperature).log_softmax(1)
    target = (teacher_scores / temperature).log_softmax(1)
    divergence = nn.functional.kl_div(soft, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def train_teacher(data: Split) -> nn.Module:
    """Return a wide net, trained on all digits."""
    net = make_net(64, 256, 10)
    optimizer = AdamW(net.parameters(), lr=RATE)
    for _ in range(15):
        train_epoch(net, optimizer, data)
    return net.requires_grad_(False)


def train_student(
    data: Split,
    seed: int,
    teacher: nn.Module | None,
    temperature: float = 1.0,
    shared: bool = False,
) -> dict[str, Any]:
    """Train on the labels, or on the teacher's scores; return right answers by epoch, and sizes."""
    torch.manual_seed(seed)
    student = Student(shared=shared)
    optimizer = AdamW(student.parameters(), lr=RATE)
    right = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data.targets)).split(20):
            optimizer.zero_grad()
            scores = student(data.inputs[rows])
            if teacher is None:
                loss = nn.functional.cross_entropy(scores, data.targets[rows])
            else:
                loss = form_distillation_loss(scores, teacher(data.inputs[rows]), temperature)
            loss.backward()
            optimizer.step()
        right.append(evaluate(student, data.held_out_inputs, data.held_out_targets)[1])
    parameters = sum(param.numel() for param in student.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    bytes_of_states = sum(value.numel() * value.element_size() for value in states)
    result = {"right": right, "parameters": parameters, "bytes": bytes_of_states}
    return {**result, "student": student, "optimizer": optimizer}


def draw(
    runs: dict[str, dict[str, Any]], by_temperature: dict[float, float], teacher: float
) -> Figure:
    """Draw right answers by epoch, and by temperature."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    curves, temperatures = figure.subplots(1, 2, sharey=True)
    for name, run in runs.items():
        curves.plot(range(1, EPOCHS + 1), run["right"], label=name)
    curves.set(title=f"Students, {EXAMPLES} digits", xlabel="epoch", ylim=(0.7, 1))
    curves.set(ylabel="right answers, held out")
    temperatures.plot(list(by_temperature), list(by_temperature.values()), "o-", label="teacher")
    temperatures.axhline(runs["labels"]["right"][-1], ls=":", color="C0", label="labels")
    temperatures.set(title="By temperature, after the last epoch", xlabel="temperature")
    temperatures.set(xscale="log", xticks=TEMPERATURES, xticklabels=TEMPERATURES)
    temperatures.minorticks_off()
    for axes in (curves, temperatures):
        axes.axhline(teacher, ls="--", color="black", label="the teacher itself")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train teacher and students; return the runs."""
    options = start(__doc__, argv)
    data = load_digits()
    teacher = train_teacher(data)
    few = data._replace(inputs=data.inputs[:EXAMPLES], targets=data.targets[:EXAMPLES])
    seed = options.seed
    distilled = {t: train_student(few, seed, teacher, t) for t in TEMPERATURES}
    runs = {
        "labels": train_student(few, seed, None),
        "teacher": distilled[TEMPERATURE],
        "teacher, shared weights": train_student(few, seed, teacher, TEMPERATURE, shared=True),
    }
    taught = evaluate(teacher, data.held_out_inputs, data.held_out_targets)[1]
    size = sum(param.numel() for param in teacher.parameters())
    rows: list[tuple[object, ...]] = [("the teacher itself", size, "-", taught)]
    rows += [(name, r["parameters"], r["bytes"], r["right"][-1]) for name, r in runs.items()]
    print_table("Students", ("", "parameters", "bytes of state", "right, held out"), rows)
    by_temperature = {t: run["right"][-1] for t, run in distilled.items()}
    columns = ("temperature", "right, held out")
    print_table("Temperatures", columns, [(f"{t:g}", v) for t, v in by_temperature.items()])
    save(draw(runs, by_temperature, taught), options, "distillation")
    return {"teacher": taught, "runs": runs, "by_temperature": by_temperature}


if __name__ == "__main__":
    main()
