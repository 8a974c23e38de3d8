"""Tensors without data (FakeTensorMode) and factory functions with another default device.

Guards: a value of a fake tensor that is read, a backend that takes its address, a tensor of the
library's own that is created on the default device.
"""

import copy
from typing import Any

import pytest
import torch
from helpers.models import KERNELS, parameters, set_grads, values
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fused_optim
from fused_optim import private_api
from fused_optim.testing.cases import CASES
from fused_optim.testing.closeness import assert_same_bits

# the first line of each class
CLASSES = list({case.fused: case for case in reversed(CASES)}.values())[::-1]
PLAIN: dict[str, Any] = {}
CLIPPED = {"max_grad_norm": 1.0}
SKIPPING = {"nonfinite": "skip", "max_grad_value": 0.5, "l1": 0.1, "ema_decay": 0.9}
STORED = {"count_stalled": True, "weights": "split24", "states": "int8", "max_grad_norm": 1.0}
RUNS = [(CLASSES[0], additions) for additions in (PLAIN, CLIPPED, SKIPPING, STORED)]
RUNS += [(case, STORED) for case in CASES if case.name in ("sgd-momentum", "lamb", "free-adamw")]
RUNS += [(case, CLIPPED) for case in CLASSES[1:]]
RUNS = [(case, additions, "auto") for case, additions in RUNS]
RUNS.append((*RUNS[1][:2], "reference"))  # the same from there on


def named(run):
    return "-".join([run[0].name, *run[1], run[2]])


def two_steps(case, **additions):
    """Return an optimizer, its parameters' states, and the parameters, after two steps."""
    params = [
        nn.Parameter(torch.ones(shape, dtype=dtype))
        for shape, dtype in [
            ((80, 60), torch.float32),
            ((70, 60), torch.bfloat16),
            ((), torch.half),
        ]
        if dtype is not torch.half or "weights" not in additions
    ]
    optimizer = case.fused(params, **copy.deepcopy({**case.options, **additions}))
    for _ in range(2):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert optimizer.grad_norm.shape == optimizer.skipped.shape == ()
    return optimizer, [optimizer.state.get(param, {}) for param in params]


@pytest.mark.parametrize("run", RUNS, ids=named)
def test_fake_tensors(run):
    """Two steps leave states of the shapes, dtypes and devices that real tensors have."""
    case, additions, backend = run
    # every backend has the same states
    _, real = two_steps(case, **additions, backend="reference")
    with FakeTensorMode():
        optimizer, fake = two_steps(case, **additions, backend=backend)
    assert optimizer.backend_used == "reference"
    for mine, other in zip(fake, real, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert isinstance(value, FakeTensor), name
            expected = other[name].shape, other[name].dtype, other[name].device
            assert (value.shape, value.dtype, value.device) == expected


@pytest.mark.parametrize("backend", ["triton", KERNELS])
def test_backends_that_need_an_address_refuse(backend):
    with FakeTensorMode():
        param = nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer = fused_optim.AdamW([param], backend=backend)
        with pytest.raises(RuntimeError, match=r"cannot be used: .* have no data"):
            optimizer.step()


def test_a_release_without_fake_tensors(monkeypatch):
    """Without torch's private class no tensor is taken to be fake."""
    with FakeTensorMode():
        fake = torch.ones(3)
    meta, real = torch.ones(3, device="meta"), torch.ones(3)
    assert [*map(private_api.has_data, (fake, meta, real))] == [False, False, True]
    monkeypatch.setattr(private_api, "FAKE_TENSOR", None)
    assert [*map(private_api.has_data, (fake, meta, real))] == [True, False, True]


def test_fake_steps_leave_real_ones_alone():
    """One optimizer class, real after fake: no choice is kept from one to the other."""
    for fake in (True, False, True):
        with FakeTensorMode() if fake else torch.no_grad():
            param = nn.Parameter(torch.ones(3))
            optimizer = fused_optim.AdamW([param])
            param.grad = torch.ones(3)
            optimizer.step()
        assert isinstance(param, FakeTensor) == fake


# what differs between kernels is compiled code: one of each kind of scalars and sums
COMPILED = ("AdamW", "LAMB", "NAdam", "ScheduleFreeAdamW")
EACH = [(case, "reference") for case in CLASSES]
EACH += [(case, KERNELS) for case in CLASSES if case.class_name in COMPILED]


@pytest.mark.parametrize("additions", [SKIPPING, STORED], ids="-".join)
@pytest.mark.parametrize(("case", "backend"), EACH, ids=lambda one: getattr(one, "name", one))
def test_another_default_device(case, backend, additions):
    """Real parameters train to the same bits while factory functions make meta tensors."""
    dtype = torch.bfloat16 if "weights" in additions else torch.float32
    shapes = [(80, 60), (3,), ()]
    gradients = [values(shapes, dtype, seed) for seed in range(3)]
    results = []
    for device in (None, "meta"):
        params = parameters(values(shapes, dtype))
        given = copy.deepcopy({**case.options, **additions, "backend": backend})
        torch.set_default_device(device)
        try:
            optimizer = case.fused(params, **given)
            for grads in gradients:
                set_grads(params, grads)
                optimizer.step()
        finally:
            torch.set_default_device(None)
        report = [optimizer.grad_norm, optimizer.clip_factor, optimizer.skipped.float()]
        states = [optimizer.state.get(param, {}) for param in params]
        results.append((params, states, report))
    for mine, other in zip(results[0][0], results[1][0], strict=True):
        assert_same_bits("parameter", mine.detach(), other.detach())
    for mine, other in zip(results[0][1], results[1][1], strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert_same_bits(name, value, other[name])
    for mine, other in zip(results[0][2], results[1][2], strict=True):
        assert_same_bits("report", mine, other)
