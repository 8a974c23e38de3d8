"""Peculiarities of single optimizers of torch, beyond the cases that all share.

Faults tried by hand: a counter that a checkpoint loses, a variance that rounding makes negative, an
Adagrad whose state appears at the first step.
"""

import copy

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, state_of, values
from helpers.torch_pair import CLASSES, IN_TORCH
from helpers.versions import CENTERED_OVERFLOWS

from fused_optim import ASGD, Adagrad, RAdam, RMSprop
from fused_optim.testing.cases import get_name
from fused_optim.testing.closeness import assert_same_bits

EXTREME = [0.0, -0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1e10, 1e19, 1e25, 1e30, 3e38]
NOT_FINITE = [torch.inf, -torch.inf, torch.nan]


def take_steps(params, optimizer, steps):
    """Take a step for each seed in ``steps``."""
    for step in steps:
        set_grads(params, values([p.shape for p in params], torch.float32, seed=step))
        optimizer.step()


@pytest.mark.parametrize("case", CLASSES, ids=get_name)
def test_resumes_from_torch_and_back(case):
    """Guard against counters lost between torch and ours: 5 steps of each are as 10 of one."""
    start = values([(33,)], torch.float32)
    runs = []
    for first, second in (
        (case.torch_class, case.torch_class),
        (case.torch_class, case.fused),
        (case.fused, case.torch_class),
        (case.fused, case.fused),
    ):
        params = parameters(start)
        optimizer = first(params, **case.options)
        take_steps(params, optimizer, range(5))
        resumed = second(params, **case.options)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        take_steps(params, resumed, range(5, 10))
        runs.append((params[0].detach(), state_of(resumed, params[0])))
    for param, state in runs[1:]:
        torch.testing.assert_close(param, runs[0][0])
        for name, value in runs[0][1].items():
            torch.testing.assert_close(state[name], value, msg=name)


@pytest.mark.parametrize("case", IN_TORCH, ids=get_name)
def test_extreme_gradients_end_where_torch_ends(case, request):
    """Guard against Inf or NaN where torch is finite, and the reverse."""
    if case.options.get("centered"):
        request.applymarker(CENTERED_OVERFLOWS)
    grad = torch.tensor(EXTREME + NOT_FINITE)
    ours, theirs = parameters([torch.ones_like(grad)]), parameters([torch.ones_like(grad)])
    fused = case.fused(ours, **case.options, backend="reference")  # the kernel has the same bits
    torch_optimizer = case.torch_class(theirs, **case.options, foreach=False)
    for _ in range(3):
        for given in (grad, torch.full_like(grad, 0.5)):
            set_grads(ours, [given])
            set_grads(theirs, [given])
            fused.step()
            torch_optimizer.step()
            assert torch.equal(ours[0].isfinite(), theirs[0].isfinite())


def test_adagrad_has_its_state_from_the_start():
    params = [
        *parameters(values([(3, 5)], torch.float32)),
        torch.nn.Parameter(torch.ones(2).cfloat()),
    ]
    ours = Adagrad(params[:], initial_accumulator_value=0.5)
    theirs = torch.optim.Adagrad(params[:], initial_accumulator_value=0.5)
    for param in params:
        state, other = ours.state[param], theirs.state[param]
        assert list(state) == list(other) == ["step", "sum"]
        assert torch.equal(state["sum"], other["sum"])
        assert state["step"] == 0
        assert not state["sum"].is_shared()
    ours.share_memory()
    assert all(ours.state[param]["sum"].is_shared() for param in params)
    late = parameters(values([(4,)], torch.float32))
    for optimizer in (ours, theirs):  # as torch, without a state before its first step
        optimizer.add_param_group({"params": late, "initial_accumulator_value": 7.0})
        set_grads(late, [torch.zeros(4)])
        optimizer.step()
        assert torch.equal(optimizer.state[late[0]]["sum"], torch.full((4,), 0.5))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_gradient_has_no_negative_variance(alpha, backend):
    """Guard against the root of a rounding error below 0."""
    steps = 400 if backend == "reference" else 40
    params = parameters([torch.zeros(6)])
    optimizer = RMSprop(params, alpha=alpha, eps=1e-3, centered=True, backend=backend)
    for _ in range(steps):
        set_grads(params, [torch.tensor([1.0, 0.3, 1e-3, 7.7, 0.1, 0.7])])
        optimizer.step()
    assert torch.isfinite(params[0]).all()


def test_radam_waits_for_the_variance():
    """Guard against rectified steps before the sixth."""
    params = parameters([torch.zeros(3)])
    optimizer = RAdam(params, lr=1.0)
    for step in range(1, 8):
        before = params[0].detach().clone()
        set_grads(params, [torch.full((3,), 100.0)])
        optimizer.step()
        assert torch.equal(before - params[0] > 99.0, torch.full((3,), step <= 5))


def test_asgd_averages_after_t0():
    params = parameters(values([(9,)], torch.float32))
    optimizer = ASGD(params, lr=0.1, t0=2)
    seen = []
    for step in range(6):
        set_grads(params, values([(9,)], torch.float32, seed=step))
        optimizer.step()
        seen.append(params[0].detach().clone())
        # mu is 1 / max(1, t - t0) of the step before
        average = seen[-1] if step < 4 else torch.stack(seen[3:]).mean(0)
        if step < 4:
            assert_same_bits("ax", optimizer.state[params[0]]["ax"], average)
        torch.testing.assert_close(optimizer.state[params[0]]["ax"], average)
