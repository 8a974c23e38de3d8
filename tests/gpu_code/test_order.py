"""Reproducible bits for every order of blocks, number of concurrent blocks and multiprocessors.

Tried by hand: the norm summed by atomic operations, and over a number of programs taken from the
device.
"""

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values

import fused_optim

# more chunks than the norm has programs, and more rows than a program of prepare processes
SHAPES = [(1030 * 1024 + 5,), *[(1 + i % 7,) for i in range(140)]]
KERNELS = {"norm", "prepare", "update", "reduce", "finalize"}


def stepped(device, **options):
    """Return the results of a step with every kernel, on gradients whose sum is rounded."""
    params = parameters([v.to(device.torch) for v in values(SHAPES, torch.float32)])
    optimizer = fused_optim.LAMB(params, max_grad_norm=0.1, nonfinite="skip", backend="triton")
    set_grads(params, [v.to(device.torch) for v in values(SHAPES, torch.float32, 1)])
    with device.on(**options) as driver:
        optimizer.step()
    if driver is not None:
        assert {launch.name for launch in driver.launches} == KERNELS
    states = [value for p in params for value in state_of(optimizer, p).values()]
    return [optimizer.grad_norm, optimizer.clip_factor, *params, *states]


@pytest.fixture(scope="module")
def expected():
    """Return a cache of the results of a step without options, by device."""
    return {}


@pytest.mark.parametrize(
    "options",
    [
        # batches of few blocks, or the order of the batches would be that of nothing
        {"order": 7, "threads_at_once": 128 * 64},
        {"multiprocessors": 3},
    ],
    ids=["order", "multiprocessors"],
)
def test_the_same_bits(device, options, expected):
    name = str(vars(device))
    if name not in expected:
        expected[name] = stepped(device)
    found = stepped(device, **options)
    for i, (ours, theirs) in enumerate(zip(found, expected[name], strict=True)):
        assert torch.equal(ours, theirs), i
