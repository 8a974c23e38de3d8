"""LAMB, LARS and StableAdamW, whose rules need sums over each tensor.

They are compared with oracles in numpy, written from the papers, and with each other's
limits. The sums are float64 in both backends but in another order, so float64 results agree to the
last bits only. Faults tried by hand: a sum that stops a chunk early or takes another row's chunks,
a trust ratio that is inverted, decay left out of LAMB's direction, the norm of the unclipped
gradient.
"""

import math

import pytest
import torch
from helpers.models import BACKENDS, KERNELS, parameters, set_grads, state_of, values
from helpers.torch_comparison import compare_with_torch

import fused_optim
from fused_optim.testing.cases import Case
from fused_optim.testing.closeness import assert_same_bits

SHAPES = [(1,), (33, 65), (0,), (3, 341), (2049,)]


ADAM = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
CASES = {
    "LAMB": ADAM,
    "LARS": {
        "lr": 2.0,
        "momentum": 0.8,
        "weight_decay": 0.1,
        "trust_coefficient": 0.02,
        "eps": 1e-8,
    },
    "StableAdamW": ADAM,
}


def gradients(start, t):
    """Return gradients, some steps much larger than others so that updates are clipped."""
    return [
        g * (10.0 if t % 3 == 0 else 1.0)
        for g in values([p.shape for p in start], torch.float32, t)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_paper(name, backend):
    case = Case(name, name, CASES[name])
    for dtype in (torch.float32, torch.float64):
        start = values(SHAPES, dtype)
        steps = 50 if backend == "reference" else 4
        compare_with_torch(
            case, start, dtype, backend, steps, lambda step, s=start: gradients(s, step + 1)
        )


@pytest.mark.parametrize("name", CASES)
def test_both_backends_agree(name):
    """Guard against bits that depend on the order of float64 sums."""
    runs = []
    for backend in BACKENDS:
        params = parameters(values(SHAPES, torch.float32))
        params += parameters(values([(70,)], torch.bfloat16))
        groups = [{"params": params[:2], "lr": 0.5}, {"params": params[2:], "nonfinite": "skip"}]
        optimizer = getattr(fused_optim, name)(groups, max_grad_value=1.0, l1=0.01, backend=backend)
        for t in range(1, 4):
            grads = values([p.shape for p in params], torch.float32, t)
            if t == 2:
                grads[3][0, 0] = math.nan
            set_grads(params, grads)
            optimizer.step()
        runs.append((params, optimizer))
    for i, (ours, theirs) in enumerate(zip(runs[0][0], runs[1][0], strict=True)):
        assert_same_bits(f"param {i}", ours.detach(), theirs.detach())
        states = state_of(runs[0][1], ours), state_of(runs[1][1], theirs)
        for slot in states[0]:
            assert_same_bits(slot, states[0][slot], states[1][slot])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lamb_with_trust_1_is_adamw(backend):
    runs = []
    for cls, options in ((fused_optim.LAMB, {"adapt": False}), (fused_optim.AdamW, {})):
        params = parameters(values(SHAPES, torch.float64))
        optimizer = cls(params, **ADAM, **options, backend=backend)
        for t in range(1, 4):
            set_grads(params, gradients(params, t))
            optimizer.step()
        runs.append(params)
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_norms_leave_the_rate_alone(backend):
    """Guard against a rate of 0 for zero parameters, and division by a gradient norm of 0."""
    for cls in (fused_optim.LAMB, fused_optim.LARS):
        params = parameters([torch.zeros(3), torch.ones(3)])
        optimizer = cls(params, lr=0.5, weight_decay=0, backend=backend)
        set_grads(params, [torch.ones(3), torch.zeros(3)])
        optimizer.step()
        torch.testing.assert_close(params[0].detach(), torch.full((3,), -0.5))
        assert torch.equal(params[1], torch.ones(3))


def test_bounds_of_the_norm():
    for bounds, norm in (((0.0, 1.0), 1.0), ((8.0, 9.0), 8.0), ((0.0, math.inf), 4.0)):
        params = parameters([torch.full((4,), 2.0)])
        optimizer = fused_optim.LAMB(params, lr=0.5, weight_decay=0, norm_bounds=bounds)
        set_grads(params, [torch.ones(4)])
        optimizer.step()
        torch.testing.assert_close(params[0].detach(), torch.full((4,), 2 - 0.5 * norm / 2))
    with pytest.raises(ValueError, match=r"norm_bounds must be 0 <= low <= high, got \(2, 1\)"):
        fused_optim.LAMB(params, norm_bounds=(2, 1))


def test_stable_adamw_is_adamw_while_its_updates_are_small():
    """Guard against clipping where the mean square stays below 1."""
    runs = []
    for cls in (fused_optim.StableAdamW, fused_optim.AdamW):
        params = parameters(values([(50,)], torch.float64))
        optimizer = cls(params, lr=0.1, betas=(0.9, 0.9), eps=0, backend="reference")
        for t in range(5):
            set_grads(params, [torch.full((50,), 2.0**-t, dtype=torch.float64)])
            optimizer.step()
        runs.append(params)
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


def test_two_more_launches(monkeypatch):
    from fused_optim.backends.kernel_runner import KernelRunner

    names = []
    run = KernelRunner._run
    monkeypatch.setattr(
        KernelRunner,
        "_run",
        lambda self, name, *args: (names.append(name), run(self, name, *args)),
    )
    params = parameters(values(SHAPES, torch.float32))
    optimizer = fused_optim.LAMB(params, backend=KERNELS, max_grad_norm=1.0)
    set_grads(params, values(SHAPES, torch.float32))
    optimizer.step()
    assert names == ["norm", "prepare", "reduce", "finalize", "update"]
