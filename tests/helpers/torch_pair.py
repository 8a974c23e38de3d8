"""Pairs of our optimizer and torch's on equal parameters, on which the same events happen.

In float64 the two differ by roundings of 1e-16, so torch.testing's defaults leave no room for
another algorithm.
"""

import copy

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values
from torch import Tensor

from fused_optim.options import EXTRA_STATE_KEYS
from fused_optim.testing.cases import CASES, ONE_PER_CLASS, get_name

IN_TORCH = [case for case in CASES if case.torch_class is not None and not case.additions]
each_case = pytest.mark.parametrize("case", IN_TORCH, ids=get_name)
CLASSES = [case for case in ONE_PER_CLASS if case.torch_class is not None]
each_class = pytest.mark.parametrize("case", CLASSES, ids=get_name)
SHAPES = [(5,), (2, 3), (), (0,)]


def widened(value):
    """Return a copy of an option, a tensor in float64: torch forms scalars in its dtype."""
    if isinstance(value, Tensor):
        return value.to(torch.float64, copy=True)
    return copy.deepcopy(value)


class Pair:
    """Two optimizers of one case, ours and torch's.

    Attributes:
        case: the case, whose class torch has.
        params: parameters of ours and of torch's, in one order.
        optimizers: ours and torch's.
        seed: number of gradients formed so far, which is the seed of the last.
    """

    def __init__(self, case, start=None, group=None, backend="reference", **options):
        """Construct both.

        Args:
            case: the case.
            start: values of the parameters; by default of ``SHAPES``, in float64.
            group: function from parameters to the optimizers' first argument; ``list`` by default.
            backend: backend of ours.
            options: constructor arguments of both, which replace those of the case.
        """
        self.case = case
        start = values(SHAPES, torch.float64) if start is None else start
        self.params = parameters(start), parameters(start)
        options = {name: widened(v) for name, v in {**case.options, **options}.items()}
        group = group or list
        mine, other = (
            {name: widened(v) for name, v in options.items()} for _ in range(2)
        )  # a tensor is one optimizer's own
        self.optimizers = (
            case.fused(group(self.params[0]), **mine, backend=backend),
            case.torch_class(group(self.params[1]), **other),
        )
        self.seed = 0

    @property
    def both(self):
        """Pairs of optimizer and parameters."""
        return zip(self.optimizers, self.params, strict=True)

    def backward(self, only=None, scale=1.0):
        """Set new gradients on the parameters at the indices ``only``, or on all."""
        self.seed += 1
        grads = values([p.shape for p in self.params[0]], torch.float64, self.seed)
        grads = [scale * g if only is None or i in only else None for i, g in enumerate(grads)]
        for params in self.params:
            set_grads(params, grads)

    def step(self, steps=1, only=None, scale=1.0):
        """Take steps of both with new gradients, and compare them."""
        for _ in range(steps):
            self.backward(only, scale)
            for optimizer in self.optimizers:
                optimizer.step()
        self.check()

    def check(self):
        """Check that parameters and states are equal, with the keys and dtypes of torch."""
        torch.testing.assert_close(*self.params)
        counters = self.scalar_state()
        dampened = any(g.get("dampening") for g in self.optimizers[0].param_groups)
        for pair in zip(*self.params, strict=True):
            mine, other = map(state_of, self.optimizers, pair)
            added = {"step"} & EXTRA_STATE_KEYS.keys() if dampened else set()
            assert mine.keys() - added == other.keys() - added
            for name in other.keys() - added:
                # a torch that has loaded a checkpoint has counters in the parameter's dtype
                same = name not in counters
                torch.testing.assert_close(mine[name], other[name], check_dtype=same)

    def scalar_state(self):
        """Return the names of the counters other than ``step``."""
        optimizer = self.optimizers[0]
        return optimizer.rule(optimizer.param_groups[0]).scalar_state[1:]
