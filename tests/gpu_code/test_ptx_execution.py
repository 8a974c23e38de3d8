"""Execution of the compiled kernels through Triton's JIT, on CPU tensors or a GPU.

The driver of ci/ptxsim uses CPU tensors as device memory and interprets the PTX, so plan, tables,
uploads and launches are those of a GPU. The results must have the bits of the reference. Unlike
Triton's interpreter this finds accesses out of bounds or misaligned, races, contracted and
approximate operations.
"""

from itertools import product

import pytest
import torch
import triton
import triton.language as tl
from gpu_code import scenario
from gpu_code.devices import GPU, TARGETS, device_named
from helpers.models import parameters, set_grads, state_of, values
from helpers.versions import NEEDS_DENORMALS

import fused_optim
from ci import ptxsim
from fused_optim.kernels.rules.common import div_rn, sqrt_rn
from fused_optim.kernels.update import update
from fused_optim.rules import common as host
from fused_optim.step.engine import Shard
from fused_optim.testing.closeness import assert_same_bits


def pytest_generate_tests(metafunc):
    """Parametrize with the selected runs, with --full with all, with --few with some."""
    if metafunc.function is not test_every_optimizer:
        return
    if metafunc.config.getoption("few"):
        runs = scenario.FEW
    elif metafunc.config.getoption("full"):
        runs = scenario.every_run()
    else:
        runs = scenario.SELECTED
    found = [pytest.param(run, id=str(run)) for run in runs]
    on_gpu = scenario.every_run(["cuda"])
    found += [pytest.param(run, id=str(run), marks=GPU.marks) for run in on_gpu]
    metafunc.parametrize("run", found)


def test_every_optimizer(run):
    """Run all cases of an optimizer on tensors of every kind, through all steps."""
    scenario.assert_equals_reference(run, device_named(run.target))


def test_the_selected_runs_have_everything_once():
    """Guard against an optimizer, a format or a target that the list leaves out."""
    runs = scenario.SELECTED
    assert {run.optimizer for run in runs} == {fused.__name__ for fused in scenario.FAMILIES}
    assert {run.format for run in runs} == {*scenario.FORMATS, "fp64"}
    pairs = {(run.format, run.target) for run in runs if run.format in scenario.PLAIN}
    assert pairs == set(product(scenario.PLAIN, TARGETS))
    misaligned = [run for run in runs if run.misaligned]
    assert {run.target for run in misaligned} == set(TARGETS)
    assert {run.format for run in misaligned} == {*scenario.FORMATS, "fp64"}


def test_an_inf_where_one_group_skips_and_one_does_not(device):
    """Check that the NaN reaches the second group, as with torch, and not the first."""
    found = []
    for backend, place in (("triton", device.torch), ("reference", "cpu")):
        params = parameters([v.to(place) for v in values([1500, 1500], torch.float32)])
        groups = [{"params": params[:1], "nonfinite": "skip"}, {"params": params[1:]}]
        optimizer = fused_optim.AdamW(groups, ema_decay=0.5, max_grad_norm=1.0, backend=backend)
        set_grads(params, [torch.full_like(p, torch.inf) for p in params])
        with device.on():
            optimizer.step()
            set_grads(params, [torch.ones_like(p) for p in params])
            optimizer.step()
        states = [state_of(optimizer, p) for p in params]
        found.append([*params, *(value for state in states for value in state.values())])
    for i, (ours, theirs) in enumerate(zip(*found, strict=True)):
        assert_same_bits(str(i), ours.detach().cpu(), theirs.detach())
    assert torch.isfinite(found[0][0]).all()
    assert torch.isnan(found[0][1]).all()


def train(backend, device, dtype, formats):
    """Return losses, parameters and states of six steps of a small model.

    The gradients are formed on the CPU for every device, because only the step is compared.
    """
    torch.manual_seed(0)
    layers = torch.nn.Linear(17, 65), torch.nn.Tanh(), torch.nn.Linear(65, 3)
    model = torch.nn.Sequential(*layers).to(dtype)
    params = [torch.nn.Parameter(p.detach().to(device, copy=True)) for p in model.parameters()]
    optimizer = fused_optim.AdamW(
        params, lr=0.1, eps=1e-3, max_grad_norm=0.05, backend=backend, ema_decay=0.9, **formats
    )
    x, y = torch.randn(40, 17, dtype=dtype), torch.randn(40, 3, dtype=dtype)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.mse_loss(model(x), y)
        model.zero_grad()
        loss.backward()
        for param, source in zip(params, model.parameters(), strict=True):
            param.grad = source.grad.to(device, copy=True)
        optimizer.step()
        assert optimizer.clip_factor < 1
        losses.append(loss.detach())
        for param, source in zip(params, model.parameters(), strict=True):
            source.data.copy_(param.detach())
    states = [value for p in params for value in state_of(optimizer, p).values()]
    return [tensor.detach().cpu() for tensor in (*losses, *params, *states)]


# scaled states, which small tensors do not have, and a weight with 8 more bits
@pytest.mark.parametrize("name", ["fp32", "split24-int8", "kahan-fp8"])
def test_training_through_the_compiled_kernels(device, name):
    """Guard against a wrong bit in a step, on which the gradients of later steps depend."""
    with device.on():
        ours = train("triton", device.torch, *scenario.storage(name))
    theirs = train("reference", "cpu", *scenario.storage(name))
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_same_bits(str(i), mine, other)
    assert ours[5] < 0.8 * ours[0]


def test_a_shard_of_columns(device):
    """Check the random bits of a shard whose elements are runs of the whole parameter."""
    found = []
    for backend, place in (("triton", device.torch), ("reference", "cpu")):
        start = values([2 * 1024 + 37], torch.bfloat16)
        params = parameters([value.to(place) for value in start])
        optimizer = fused_optim.AdamW(params, weights="split24", states="bf16", backend=backend)
        optimizer._engine.shards[params[0]] = Shard(3, 2**33 + 7, 2**40, run=37, stride=111)
        for _ in range(2):
            set_grads(params, [torch.ones_like(p) for p in params])
            with device.on():
                optimizer.step()
        found.append([params[0], *state_of(optimizer, params[0]).values()])
    for i, (ours, theirs) in enumerate(zip(*found, strict=True)):
        assert_same_bits(str(i), ours.detach().cpu(), theirs.detach())


def test_a_step_of_200_tensors_in_3_groups_is_3_launches_of_the_driver():
    params = parameters(values([1 + i % 40 for i in range(200)], torch.float32))
    groups = [
        {"params": params[:90]},
        {"params": params[90:150], "lr": 0.1, "weight_decay": 0.0},
        {"params": params[150:], "betas": (0.5, 0.6), "max_grad_value": 1.0},
    ]
    optimizer = fused_optim.AdamW(groups, backend="triton", max_grad_norm=1.0)
    set_grads(params, [torch.ones_like(p) for p in params])
    with ptxsim.install(arch=90) as driver:
        optimizer.step()
        grids = [(launch.name, launch.grid[0]) for launch in driver.launches]
    assert grids == [("norm", 200), ("prepare", 2), ("update", 200)]


@triton.jit
def divided(x_ptr, y_ptr, quotient_ptr, root_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(quotient_ptr + i, div_rn(x, y))
    tl.store(root_ptr + i, sqrt_rn(x))


@NEEDS_DENORMALS
def test_division_and_root_of_denormals(device):
    """Check denormal operands and denormal results."""
    x = torch.tensor([1e-45, 3e-39, 1.1754942e-38, 1.1754944e-38, 2e-38, 5e-38, 1.0, 0.0] * 16)
    y = torch.tensor([1.0, 3.0, 1e-40, 7.0, 1e30, 3e38, 1e-39, 1e-45]).repeat_interleave(16)
    args = [tensor.to(device.torch) for tensor in (x, y, torch.empty(128), torch.empty(128))]
    with device.on():
        divided[(1,)](*args, BLOCK=128, enable_fp_fusion=False)
    assert_same_bits("quotients", args[2].cpu(), x / y)
    assert_same_bits("roots", args[3].cpu(), host.sqrt_rn(x))


def test_options_and_sizes_compile_nothing(device):
    """Guard against an option that is constexpr, whose second value compiles a second kernel."""
    compiled = []
    for lr, betas, norm, size in ((0.1, (0.9, 0.99), 1.0, 1500), (1.0, (0.0, 0.5), 2.0, 16)):
        start = [v.to(device.torch) for v in values([size] * 3, torch.float32)]
        params = parameters(start)
        optimizer = fused_optim.AdamW(
            params, lr, betas, weight_decay=lr, max_grad_norm=norm, l1=lr, backend="triton"
        )
        with device.on():
            for _ in range(2):
                set_grads(params, [torch.ones_like(p) for p in params])
                optimizer.step()
        compiled.append(sum(len(caches[0]) for caches in update.device_caches.values()))
    assert compiled[0] == compiled[1] > 0
