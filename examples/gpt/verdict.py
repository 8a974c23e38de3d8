"""Test of two loss curves: do they differ by more than rounding explains?

Training multiplies small differences, by a factor that depends on the model, the learning rate
and the step, so no fixed tolerance is right: it would pass a wrong weight decay early on or fail
an unstable stretch later. The control run measures the factor: it is torch's optimizer again, with
every rounding done differently (`training.RoundedOtherwise`). At each step the curves may differ by

    MARGIN * (largest difference between control and torch so far + one rounding of the loss)

Differences at a single step are as random as the roundings are, hence a margin of 32. Measured in
this unit, on the CPU, over five seeds of at least 100 steps, fused_optim's AdamW and Adam reach 1
and its SGD 3.5. With seed 0 an AdamW whose weight decay is a tenth too large reaches 110 (1 % too
large: 11, which passes), a beta2 of 0.989 for 0.99 210, an eps of 1e-7 for 1e-8 650, a missing
bias correction or clip 300,000 and more. No margin helps where training is chaotic: at ten times
the learning rate that SGD has here, two of torch's own runs that differ by rounding reached 56.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .training import EPS, Run, Trio

MARGIN = 32.0


class Verdict(NamedTuple):
    """Step with the largest difference of the curves, relative to the allowed one."""

    step: int
    difference: float
    allowed: float

    @property
    def within_rounding(self) -> bool:
        """Return True if the difference is allowed; NaN is not."""
        return self.difference <= self.allowed


def differences(run: Run, peer: Run) -> np.ndarray:
    """Return the absolute difference of the training losses of two runs, [steps]."""
    with np.errstate(invalid="ignore"):  # two infinite losses: their difference is a NaN
        return np.abs(np.subtract(run.losses, peer.losses))


def allowances(runs: Trio) -> np.ndarray:
    """Return the allowed difference of the losses of torch and fused, [steps]."""
    control = np.maximum.accumulate(differences(runs.control, runs.torch))
    # a small loss is still the difference of logits of order one
    rounding = EPS * np.maximum(1.0, np.abs(runs.torch.losses))
    return MARGIN * (control + rounding)


def judge(runs: Trio, first: int) -> Verdict:
    """Find the worst point of the training and validation curves, which begin after ``first``."""
    allowed = allowances(runs)
    evaluated = np.array(list(runs.torch.validation))
    values = [list(run.validation.values()) for run in (runs.fused, runs.torch)]
    steps = np.append(np.arange(first + 1, first + 1 + len(allowed)), evaluated)
    apart = np.append(differences(runs.fused, runs.torch), np.abs(np.subtract(*values)))
    allowed = np.append(allowed, allowed[evaluated - first - 1])
    # argmax takes a NaN for the largest
    worst = int(np.argmax(apart / allowed))
    return Verdict(int(steps[worst]), float(apart[worst]), float(allowed[worst]))
