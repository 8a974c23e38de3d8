"""Assertions on the comparisons of fused_optim.testing, with normally distributed values."""

import math

from fused_optim.testing.closeness import describe
from fused_optim.testing.comparisons import Variant, compare_all_steps
from fused_optim.testing.inputs import values

STEPS = 50


def normal_gradients(start, dtype):
    """Return the function from a step to its gradients."""
    return lambda step: values([p.shape for p in start], dtype, seed=100 + step)


def compare_with_torch(case, start, dtype, backend, steps=STEPS, grads=None):
    """Check parameters, states, their names and dtypes after ``steps`` steps.

    An oracle of its paper replaces torch.optim where that lacks the optimizer.
    """
    variant = Variant(case, dtype, backend)
    found = compare_all_steps(variant, start, grads or normal_gradients(start, dtype), steps)
    for name, closeness in found.items():
        assert math.isfinite(closeness.baseline), f"{name} of torch.optim is not finite"
        assert closeness.close, f"{name}: {describe(closeness)}"
    return found
