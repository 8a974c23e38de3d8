"""What is read in C is what is read in Python: the same addresses, and the same decision always.

The oracle is the guard that asks each tensor for each attribute.

Tried by hand: in csrc/snapshot.c, one at a time, without the comparison of the type, the number of
dims, the dtype, the shape, the strides, the address, the negative bit (of all, and of a single
element), the keys, the names, the counts, the parameters, whether there is a gradient.
"""

import contextlib
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from changes import EVENTS as CHANGES
from changes import params_of
from test_host import Twins
from test_packaging import COMPILER
from worlds import EVENTS, World

from fused_optim.private_api import dlpack_exchange_api, find
from fused_optim.step import guards
from fused_optim.step.engine import StepEngine


def reads_in_c():
    try:
        dlpack_exchange_api()
    except ValueError:
        return False
    return find("fused_optim._host", "Snapshot") is not None


needs_c = pytest.mark.skipif(
    not reads_in_c(), reason="the C module is not built, or torch has no exchange API"
)


def test_the_c_module_is_built():
    if not COMPILER:
        pytest.skip("there is no C compiler, or no Python.h")
    assert find("fused_optim._host", "Snapshot") is not None, "run: bash ci/setup.sh dev"


@pytest.fixture
def plain(monkeypatch):
    """Makes the guard that reads each attribute in Python."""
    monkeypatch.setattr(guards, "TENSOR_GUARDS", None)
    return guards.PythonGuard


def assert_alike(world, host, plain):
    """Return whether both guards say that a step may go on."""
    found, expected = (guard.check(world.groups, world.state) for guard in (host, plain))
    assert (found is None) == (expected is None)
    if found is None:
        return False
    assert list(map(id, found.params)) == list(map(id, expected.params))
    assert list(map(id, found.list_tensors())) == list(map(id, expected.list_tensors()))
    assert found.grad_addresses.dtype == expected.grad_addresses.dtype == np.int64
    assert found.grad_addresses.tolist() == expected.grad_addresses.tolist()
    assert found.grad_addresses.tolist() == [p.grad.data_ptr() for p in found.params]
    return True


@needs_c
@pytest.mark.parametrize("event", EVENTS)
def test_each_change_is_seen_as_in_python(event, plain):
    change, expected = EVENTS[event]
    for seed in range(12):
        world = World(seed)
        pair = guards.HostGuard(world.groups, world.state), plain(world.groups, world.state)
        assert assert_alike(world, *pair)
        before = [*world.params, *(p.grad for p in world.params), *map(dict, world.state.values())]
        change(world)
        goes_on = assert_alike(world, *pair)
        assert expected in (goes_on, None)
        assert assert_alike(world, *pair) == goes_on
        del before


@needs_c
def test_many_changes_are_seen_as_in_python(plain):
    """In any order, and with objects that get the memory of others."""
    went_on = 0
    for seed in range(400):
        world = World(seed)
        pair = guards.HostGuard(world.groups, world.state), plain(world.groups, world.state)
        for _ in range(4):
            # most keep the step as it is, else a guard would see little beyond the first change
            mild = world.random.random() < 0.7
            names = [name for name in EVENTS if not mild or EVENTS[name][1]]
            # a change may make another one impossible
            with contextlib.suppress(RuntimeError, LookupError, TypeError, AttributeError):
                EVENTS[world.random.choice(names)][0](world)
            went_on += assert_alike(world, *pair)
    assert 400 < went_on < 1200


@needs_c
@pytest.mark.parametrize("event", CHANGES)
def test_steps_with_and_without_the_c_module(event, monkeypatch):
    """The same bits, and as many full steps; every other optimizer test runs with the module."""
    found = []
    for module in (True, False):
        if not module:
            monkeypatch.setitem(sys.modules, "fused_optim._host", None)
        full = mock.patch.object(
            StepEngine, "_full_step", autospec=True, side_effect=StepEngine._full_step
        )
        with full as count:
            twins = Twins("fp32", "reference")
            twins.step()
            for optimizer in twins.optimizers:
                CHANGES[event][0](optimizer)
                for param in params_of(optimizer):
                    if not param.requires_grad:
                        param.grad = None
            twins.step()
        found.append((count.call_count, [p.detach() for p in params_of(twins.optimizers[0])]))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))
