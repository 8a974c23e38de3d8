"""Ours and torch's on equal parameters: what happens to one happens to both.

In float64 the two differ by roundings of 1e-16, so torch.testing's defaults leave no room for
another algorithm.
"""

import copy

import pytest
import torch
from helpers.cases import CASES, ONE_PER_CLASS, get_name
from helpers.models import parameters, set_grads, state_of, values
from torch import Tensor

from fused_optim.options import EXTRA_STATE_KEYS

IN_TORCH = [case for case in CASES if case.torch_class is not None and not case.additions]
each_case = pytest.mark.parametrize("case", IN_TORCH, ids=get_name)
CLASSES = [case for case in ONE_PER_CLASS if case.torch_class is not None]
each_class = pytest.mark.parametrize("case", CLASSES, ids=get_name)
SHAPES = [(5,), (2, 3), (), (0,)]


def widened(value):
    """torch forms scalars in the dtype of a tensor option: float64, as the parameters."""
    if isinstance(value, Tensor):
        return value.to(torch.float64, copy=True)
    return copy.deepcopy(value)


class Pair:
    """Two optimizers of one case; index 0 is ours, index 1 torch's."""

    def __init__(self, case, start=None, group=None, **options):
        """``group(params)`` returns what the optimizers take; ``options`` go over the case's."""
        self.case = case
        start = values(SHAPES, torch.float64) if start is None else start
        self.params = parameters(start), parameters(start)
        options = {name: widened(v) for name, v in {**case.options, **options}.items()}
        group = group or list
        mine, other = (
            {name: widened(v) for name, v in options.items()} for _ in range(2)
        )  # a tensor is one optimizer's own
        self.optimizers = (
            case.fused(group(self.params[0]), **mine, backend="reference"),
            case.torch_class(group(self.params[1]), **other),
        )
        self.seed = 0

    @property
    def both(self):
        return zip(self.optimizers, self.params, strict=True)

    def backward(self, only=None, scale=1.0):
        """New gradients for all parameters, or for those in ``only``."""
        self.seed += 1
        grads = values([p.shape for p in self.params[0]], torch.float64, self.seed)
        grads = [scale * g if only is None or i in only else None for i, g in enumerate(grads)]
        for params in self.params:
            set_grads(params, grads)

    def step(self, steps=1, only=None, scale=1.0):
        for _ in range(steps):
            self.backward(only, scale)
            for optimizer in self.optimizers:
                optimizer.step()
        self.check()

    def check(self):
        """Parameters and states are equal, with the keys and dtypes of torch."""
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
        """Names of the counters beside the step."""
        optimizer = self.optimizers[0]
        return optimizer.rule(optimizer.param_groups[0]).scalar_state[1:]
