"""Every scheduler of torch, which edits groups between steps, on ours and on torch's.

Faults guarded against: a Tensor lr read once, betas kept from the first step, a step that
``LRScheduler`` does not see.
"""

import copy
import inspect

import pytest
import torch
from helpers.models import values
from helpers.torch_pair import CLASSES, Pair, each_class
from helpers.versions import NEEDS_KEPT_TENSOR_LR, SEQUENTIAL_LR_WARNS
from torch.optim import lr_scheduler as lrs

START = values([(3,), (2,)], torch.float64)
SCHEDULERS = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda epoch: 0.75),
    "StepLR": lambda o: lrs.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.25, 1.0, 4),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 6, 2.0),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 4, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 2, 2),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.ConstantLR(o, 0.5, 2), lrs.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.LinearLR(o, 0.5, 1.0, 3), lrs.ExponentialLR(o, 0.75)], o
    ),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, 8, cycle_momentum=False),
}
# with these, torch replaces a Tensor lr by another number or tensor
REPLACING = ("CosineAnnealingWarmRestarts", "SequentialLR", "ReduceLROnPlateau")
CYCLES = {
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 2, base_momentum=0.5, max_momentum=0.75),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, 8, base_momentum=0.5, max_momentum=0.75),
}

pytestmark = SEQUENTIAL_LR_WARNS


@pytest.mark.feature("schedulers")
def test_no_scheduler_is_left_out():
    bases = {"LRScheduler", "_LRScheduler"}
    result = {
        name
        for name, cls in vars(lrs).items()
        if inspect.isclass(cls) and issubclass(cls, lrs.LRScheduler)
    }
    assert result - bases == set(SCHEDULERS)


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def scheduled(pair, schedulers, steps):
    for step in range(steps):
        pair.step(1)
        for scheduler in schedulers:
            if isinstance(scheduler, lrs.ReduceLROnPlateau):
                scheduler.step(1.0 + step)
            else:
                scheduler.step()
        assert rates(pair.optimizers[0]) == rates(pair.optimizers[1])


def with_groups(params):
    return [{"params": params[:1]}, {"params": params[1:], "lr": 0.2}]


@pytest.mark.feature("schedulers")
@pytest.mark.parametrize("name", SCHEDULERS)
@each_class
def test_scheduler(case, name):
    """Guard against options read once: six steps in two groups, resumed in the middle."""
    pair = Pair(case, START, with_groups, lr=0.3)
    schedulers = [SCHEDULERS[name](optimizer) for optimizer in pair.optimizers]
    scheduled(pair, schedulers, 3)
    saved = [
        copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        for optimizer, scheduler in zip(pair.optimizers, schedulers, strict=True)
    ]
    pair.optimizers = tuple(
        type(optimizer)(with_groups(params), lr=0.3) for optimizer, params in pair.both
    )
    schedulers = [SCHEDULERS[name](optimizer) for optimizer in pair.optimizers]
    for optimizer, scheduler, (state, progress) in zip(
        pair.optimizers, schedulers, saved, strict=True
    ):
        scheduler.load_state_dict(progress)
        optimizer.load_state_dict(state)
    before = rates(pair.optimizers[0])
    scheduled(pair, schedulers, 3)
    assert name == "ConstantLR" or before != rates(pair.optimizers[0])


@pytest.mark.feature("schedulers of a Tensor lr")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=NEEDS_KEPT_TENSOR_LR if name in REPLACING else ())
        for name in SCHEDULERS
    ],
)
@each_class
def test_scheduler_of_a_tensor(case, name):
    """Guard against a Tensor lr that is replaced: schedulers fill it."""
    pair = Pair(case, START, lr=torch.tensor(0.3, dtype=torch.float64))
    tensors = [optimizer.param_groups[0]["lr"] for optimizer in pair.optimizers]
    schedulers = [SCHEDULERS[name](optimizer) for optimizer in pair.optimizers]
    scheduled(pair, schedulers, 4)
    for optimizer, tensor in zip(pair.optimizers, tensors, strict=True):
        assert optimizer.param_groups[0]["lr"] is tensor


def can_cycle(case):
    defaults = Pair(case).optimizers[1].defaults
    return "betas" in defaults or "momentum" in defaults


@pytest.mark.feature("cycled momentum")
@pytest.mark.parametrize("name", CYCLES)
@pytest.mark.parametrize("case", [c for c in CLASSES if can_cycle(c)], ids=lambda c: c.name)
def test_cycled_momentum(case, name):
    """Guard against a momentum or ``betas[0]`` read once, from 0 on for SGD and RMSprop."""
    pair = Pair(case, START)
    schedulers = [CYCLES[name](optimizer) for optimizer in pair.optimizers]
    seen = set()
    for _ in range(6):
        scheduled(pair, schedulers, 1)
        groups = [optimizer.param_groups[0] for optimizer in pair.optimizers]
        key = "betas" if "betas" in groups[0] else "momentum"
        assert groups[0][key] == groups[1][key]
        seen.add(str(groups[0][key]))
    assert len(seen) > 2


@pytest.mark.feature("schedulers")
@each_class
def test_schedulers_in_a_row(case):
    """Guard against options lost between two schedulers of the same groups."""
    pair = Pair(case, START, lr=0.3)
    schedulers = [
        make(optimizer)
        for make in (SCHEDULERS["ExponentialLR"], SCHEDULERS["CosineAnnealingLR"])
        for optimizer in pair.optimizers
    ]
    scheduled(pair, schedulers, 5)


@pytest.mark.feature("schedulers")
@each_class
def test_a_scheduler_sees_our_steps(case):
    """Guard against steps that torch does not count: it warns if the scheduler steps first."""
    pair = Pair(case)
    for optimizer in pair.optimizers:
        scheduler = SCHEDULERS["StepLR"](optimizer)
        with pytest.warns(UserWarning, match="before `optimizer.step"):
            scheduler.step()
