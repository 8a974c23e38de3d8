"""Pairs of optimizers with and without the cached step, on which the same events happen."""

import torch
from helpers.models import parameters, state_of, values
from helpers.mutations import params_of

from fused_optim import AdamW
from fused_optim.testing.closeness import assert_same_bits

SHAPES = [(40,), (3, 50), (40,), (8, 9)]
LARGE = [(40,), (41, 100), (40,), (8, 9)]  # the second is large enough for scales
FORMATS = {"weights": "split", "states": "int8", "ema_decay": 0.5}
SETUPS = {"fp32": (torch.float32, SHAPES, {}), "formats": (torch.bfloat16, LARGE, FORMATS)}


class CachePair:
    """Two optimizers: the first uses its cached step where it can, the second never does."""

    def __init__(self, setup, backend):
        self.dtype, shapes, options = SETUPS[setup]
        options = {**options, "lr": 0.1, "max_grad_norm": 1.0, "backend": backend}
        starts = values(shapes, self.dtype)
        self.optimizers = []
        for _ in range(2):
            params = parameters(starts)
            groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
            self.optimizers.append(AdamW(groups, **options))
        self.seed = 0

    def step(self, new_grads=True):
        """Take a step of both, drop the cache of the second before it, and compare them."""
        self.seed += 1
        for uncached, optimizer in enumerate(self.optimizers):
            if uncached:
                optimizer._engine.cache = None
            params = params_of(optimizer)
            grads = values([p.shape for p in params], self.dtype, self.seed)
            for param, grad in zip(params, grads, strict=True):
                if new_grads and param.requires_grad:
                    param.grad = grad.to(param.dtype)
            optimizer.step()
        self.compare()

    def compare(self):
        """Check that parameters and states of both have the same bits."""
        first, second = self.optimizers
        for i, pair in enumerate(zip(params_of(first), params_of(second), strict=True)):
            assert_same_bits(f"parameter {i}", *(param.detach() for param in pair))
            states = [state_of(o, p) for o, p in zip(self.optimizers, pair, strict=True)]
            assert list(states[0]) == list(states[1])
            for name in states[0]:
                assert_same_bits(f"{name} of {i}", *(state[name] for state in states))
