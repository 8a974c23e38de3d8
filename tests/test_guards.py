"""The guard of the cached step in C, compared with the guard in Python.

The oracle is the guard that asks each tensor for each attribute.

Faults tried by hand: in csrc/snapshot.c, one at a time, without the comparison of the type, the
number of dims, the dtype, the shape, the strides, the address, the negative bit (of all, and of a
single element), the keys, the names, the counts, the parameters, whether there is a gradient.
"""

import contextlib
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.c_module import HAS_C_MODULE, HAS_COMPILER, NEEDS_C_MODULE
from helpers.mutations import EVENTS as CHANGES
from helpers.mutations import params_of
from helpers.step_cache_pair import CachePair
from helpers.step_inputs import EVENTS, StepInputs

from fused_optim.step import guards
from fused_optim.step.engine import StepEngine


def test_the_c_module_is_built():
    """Guard against a test run without the C module, in which half of these tests do nothing."""
    assert HAS_C_MODULE or not HAS_COMPILER, "run: bash ci/setup.sh dev"


@pytest.fixture
def plain(monkeypatch):
    """Return the guard that reads each attribute in Python."""
    monkeypatch.setattr(guards, "TENSOR_GUARDS", None)
    return guards.PythonGuard


def assert_alike(inputs, host, plain):
    """Check that both guards agree; return whether a step may go on."""
    result, expected = (guard.check(inputs.groups, inputs.state) for guard in (host, plain))
    assert (result is None) == (expected is None)
    if result is None:
        return False
    assert list(map(id, result.params)) == list(map(id, expected.params))
    assert list(map(id, result.list_tensors())) == list(map(id, expected.list_tensors()))
    assert result.grad_addresses.dtype == expected.grad_addresses.dtype == np.int64
    assert result.grad_addresses.tolist() == expected.grad_addresses.tolist()
    assert result.grad_addresses.tolist() == [p.grad.data_ptr() for p in result.params]
    return True


@NEEDS_C_MODULE
@pytest.mark.parametrize("event", EVENTS)
def test_each_change_is_seen_as_in_python(event, plain):
    change, expected = EVENTS[event]
    for seed in range(12):
        inputs = StepInputs(seed)
        pair = guards.HostGuard(inputs.groups, inputs.state), plain(inputs.groups, inputs.state)
        assert assert_alike(inputs, *pair)
        # so that no address is given out again
        before = [*inputs.params, *(p.grad for p in inputs.params)]
        before += map(dict, inputs.state.values())
        change(inputs)
        goes_on = assert_alike(inputs, *pair)
        assert expected in (goes_on, None)
        assert assert_alike(inputs, *pair) == goes_on
        del before


@NEEDS_C_MODULE
def test_many_changes_are_seen_as_in_python(plain):
    """Guard against faults that need several changes, or objects at reused addresses."""
    went_on = 0
    for seed in range(400):
        inputs = StepInputs(seed)
        pair = guards.HostGuard(inputs.groups, inputs.state), plain(inputs.groups, inputs.state)
        for _ in range(4):
            # most keep the step as it is, else a guard would see little beyond the first change
            mild = inputs.random.random() < 0.7
            names = [name for name in EVENTS if not mild or EVENTS[name][1]]
            # a change may make another one impossible
            with contextlib.suppress(RuntimeError, LookupError, TypeError, AttributeError):
                EVENTS[inputs.random.choice(names)][0](inputs)
            went_on += assert_alike(inputs, *pair)
    assert 400 < went_on < 1200


@NEEDS_C_MODULE
@pytest.mark.parametrize("event", CHANGES)
def test_steps_with_and_without_the_c_module(event, monkeypatch):
    """Guard against other bits or more full steps without the C module."""
    result = []
    for module in (True, False):
        if not module:
            monkeypatch.setitem(sys.modules, "fused_optim._host", None)
        full = mock.patch.object(
            StepEngine, "_full_step", autospec=True, side_effect=StepEngine._full_step
        )
        with full as count:
            pair = CachePair("fp32", "reference")
            pair.step()
            for optimizer in pair.optimizers:
                CHANGES[event][0](optimizer)
                for param in params_of(optimizer):
                    if not param.requires_grad:
                        param.grad = None
            pair.step()
        result.append((count.call_count, [p.detach() for p in params_of(pair.optimizers[0])]))
    assert result[0][0] == result[1][0]
    assert all(map(torch.equal, result[0][1], result[1][1]))
