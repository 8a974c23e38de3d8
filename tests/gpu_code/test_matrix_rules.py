"""Compiled passes of a rule with a step on matrices, and of cautious decay, in the bits of torch.

Faults tried by hand: the direction stored in the first column, the 0-dim states advanced twice, the
decay of the rule not set to 0.
"""

import pytest
import torch
from gpu_code.devices import device_named
from helpers.models import parameters, set_grads, state_of, values

import fused_optim
from fused_optim.testing.closeness import assert_same_bits

SHAPES = [(40, 65), (1, 9), (40, 65)]
COMMON = {"lr": 0.1, "weight_decay": 0.3, "cautious_decay": True, "max_grad_norm": 1.0}
FORMATS = {
    "fp32": (torch.float32, {"ema_decay": 0.9}),
    "split-int8": (torch.bfloat16, {"weights": "split", "states": "int8", "count_stalled": True}),
    "master-fp32": (torch.bfloat16, {"weights": "master", "states": "fp32", "l1": 1e-3}),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_compiled_passes_equal_the_reference(algorithm, name):
    dtype, options = FORMATS[name]
    device, runs = device_named("sm_90"), []
    for backend in ("triton", "reference"):
        params = parameters(values(SHAPES, dtype))
        groups = [{"params": params, "algorithm": algorithm}]
        optimizer = fused_optim.Muon(groups, **COMMON, **options, backend=backend)
        for seed in range(2):
            set_grads(params, values(SHAPES, dtype, seed=seed))
            with device.on():
                optimizer.step()
        states = [value for p in params for value in state_of(optimizer, p).values()]
        runs.append([*(p.detach() for p in params), *states])
    for i, (ours, theirs) in enumerate(zip(*runs, strict=True)):
        assert_same_bits(str(i), ours, theirs)
