"""LAMB, LARS and StableAdamW, whose rules need sums over each tensor.

They are compared with oracles in float64 numpy, written from the papers, and with each other's
limits. The sums are float64 in both backends but in another order, so float64 results agree to the
last bits only. Faults tried by hand: a sum that stops a chunk early or takes another row's chunks,
a trust ratio that is inverted, decay left out of LAMB's direction, the norm of the unclipped
gradient.
"""

import math

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS, KERNELS, parameters, set_grads, state_of, values
from helpers.tolerances import assert_as_accurate, assert_same_bits

import fused_optim

SHAPES = [(1,), (33, 65), (0,), (3, 341), (2049,)]


def lamb(p, g, s, t, lr, betas, eps, weight_decay):
    """Update by LAMB, You et al. 2020, algorithm 2."""
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g * g
    m, v = s["m"] / (1 - betas[0] ** t), s["v"] / (1 - betas[1] ** t)
    update = m / (np.sqrt(v) + p.dtype.type(eps)) + weight_decay * p
    trust = np.linalg.norm(p) / np.linalg.norm(update)
    return p - lr * trust * update


def lars(p, g, s, t, lr, momentum, weight_decay, trust_coefficient, eps):
    """Update by LARS, You, Gitman and Ginsburg 2017, algorithm 1."""
    norms = np.linalg.norm(p), np.linalg.norm(g)
    local = trust_coefficient * norms[0] / (norms[1] + weight_decay * norms[0] + eps)
    s["v"] = momentum * s.get("v", 0) + lr * local * (g + weight_decay * p)
    return p - s["v"]


def stable_adamw(p, g, s, t, lr, betas, eps, weight_decay):
    """Update by StableAdamW, Wortsman et al. 2023, algorithm 2."""
    b1, b2 = ((b * (1 - b ** (t - 1)) / (1 - b**t)) for b in betas)
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    rms = np.sqrt(np.mean(g * g / np.maximum(s["v"], eps**2)))
    rate = lr / max(1, rms)
    return p - rate * weight_decay * p - rate * s["m"] / (np.sqrt(s["v"]) + eps)


ADAM = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
CASES = {
    "LAMB": (lamb, ADAM),
    "LARS": (
        lars,
        {"lr": 2.0, "momentum": 0.8, "weight_decay": 0.1, "trust_coefficient": 0.02, "eps": 1e-8},
    ),
    "StableAdamW": (stable_adamw, ADAM),
}


def oracle_run(rule, options, start, steps, dtype):
    result = []
    for i, tensor in enumerate(start):
        p, state = tensor.numpy().astype(dtype), {}
        for t in range(1, steps + 1):
            g = gradients(start, t)[i].numpy().astype(dtype)
            p = rule(p, g, state, t, **options) if p.size else p
        result.append(torch.from_numpy(np.asarray(p, dtype)))
    return result


def gradients(start, t):
    """Return gradients, some steps much larger than others so that updates are clipped."""
    return [
        g * (10.0 if t % 3 == 0 else 1.0)
        for g in values([p.shape for p in start], torch.float32, t)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_paper(name, backend):
    rule, options = CASES[name]
    steps = 50 if backend == "reference" else 4
    start = values(SHAPES, torch.float32)
    exact = oracle_run(rule, options, start, steps, np.float64)
    for dtype in (torch.float32, torch.float64):
        params = parameters(start, dtype)
        optimizer = getattr(fused_optim, name)(params, **options, backend=backend)
        for t in range(1, steps + 1):
            set_grads(params, gradients(start, t))
            optimizer.step()
        if dtype is torch.float64:
            torch.testing.assert_close([p.detach() for p in params], exact, rtol=1e-11, atol=1e-12)
        else:
            narrow = oracle_run(rule, options, start, steps, np.float32)
            joined = [
                torch.cat([p.detach().flatten() for p in run]) for run in (params, narrow, exact)
            ]
            assert_as_accurate(name, *joined)


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
