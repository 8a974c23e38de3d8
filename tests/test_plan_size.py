"""Time and memory of plans for up to 405 billion parameters that have no memory themselves.

The shapes are those of Llama 3.1 405B (https://arxiv.org/abs/2407.21783, table 3).
"""

import resource
import time

import pytest
import torch
from torch import Tensor

import fused_optim
from fused_optim.backends import kernel_runner, triton

HIDDEN, FEED_FORWARD, KEYS, VOCABULARY, LAYERS = 16384, 53248, 1024, 128256, 126
ATTENTION = [(HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, HIDDEN)]
MLP = [(FEED_FORWARD, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD)]
ENDS = [(VOCABULARY, HIDDEN), (VOCABULARY, HIDDEN), (HIDDEN,)]
LAYER = [*ATTENTION, *MLP, (HIDDEN,), (HIDDEN,)]
MIB = 1 << 20


@pytest.fixture
def cost(record_property):
    """Record seconds and the rise of peak memory for a report; return MiB."""

    def measure(function):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        function()
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        record_property("seconds", round(time.perf_counter() - start, 2))
        record_property("MiB of host memory", round(peak, 1))
        return peak

    return measure


def meta_model(layers):
    params = [
        torch.nn.Parameter(torch.empty(s, dtype=torch.bfloat16, device="meta"))
        for s in [*ENDS, *LAYER * layers]
    ]
    for param in params:
        param.grad = torch.empty_like(param)
    return params


def test_a_step_on_meta_tensors(cost):
    """Guard against allocations in the public path: states and checks of meta tensors.

    With 8 layers, for operations on meta tensors are slow; one matrix is more than the bound.
    """
    params = meta_model(8)
    optimizer = fused_optim.AdamW(params, max_grad_norm=1.0)
    assert cost(optimizer.step) < 256
    assert optimizer.backend_used == "reference"
    assert optimizer.state[params[0]]["exp_avg"].shape == ENDS[0]
    assert isinstance(optimizer.grad_norm, Tensor)


def test_the_tables_of_the_triton_backend(cost, monkeypatch, record_property):
    """Guard against tables of more than a few bytes a tensor and a million elements."""
    uploaded = []
    monkeypatch.setattr(kernel_runner, "upload", lambda array, device: uploaded.append(array))
    monkeypatch.setattr(kernel_runner.KernelRunner, "_record_streams", lambda self: None)
    monkeypatch.setattr(kernel_runner.KernelRunner, "_run", lambda *args, **constants: None)
    monkeypatch.setattr("fused_optim.step.engine.resolve", lambda *arguments: "triton")
    monkeypatch.setattr(triton, "active_target", triton.InterpreterTarget)
    params = meta_model(LAYERS)
    assert sum(p.numel() for p in params) == 405_853_388_800
    optimizer = fused_optim.AdamW(params, max_grad_norm=1.0)
    assert cost(optimizer.step) < 256
    size = sum(array.nbytes for array in uploaded)
    record_property("MiB of tables", round(size / MIB, 1))
    assert size < 64 * MIB
    runner = next(iter(optimizer._engine.plan.buckets.values())).runner
    assert runner.chunks < 2**31 - 1  # programs a grid can have
