"""NorMuon beside the paper's algorithm in float64, and its states of rows.

Faults tried by hand: the second moments of columns, moments of the momentum before the products,
the norm of 0.2 left out, moments written in a skipped step, blocks that share moments.
"""

import copy
import math

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values
from torch.utils._python_dispatch import TorchDispatchMode

from fused_optim import Muon, NorMuon, memory
from fused_optim.testing.closeness import assert_as_accurate, assert_same_bits

SHAPES = [(24, 24), (16, 60), (48, 8), (24, 24)]
DEFAULT = (3.4445, -4.775, 2.0315)


def polar(matrix):
    """Return the result of the five default steps, by the singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / matrix.norm().clamp(min=1e-7)
    for a, b, c in [DEFAULT] * 5:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ v


def run_paper(start, grads, dtype, lr, beta2=0.95, weight_decay=0.1):
    """Return the parameters by algorithm 1 of the paper, with Nesterov momentum 0.95."""
    params = [p.to(dtype) for p in start]
    momenta = [torch.zeros_like(p) for p in params]
    moments = [torch.zeros_like(p[:, :1]) for p in params]
    for given in grads:
        for i, g in enumerate(given):
            g = g.to(dtype)
            momenta[i] = 0.95 * momenta[i] + 0.05 * g
            o = polar(0.95 * momenta[i] + 0.05 * g)
            moments[i] = beta2 * moments[i] + (1 - beta2) * (o * o).mean(1, keepdim=True)
            o = o / (moments[i].sqrt() + 1e-10)
            rate = 0.2 * lr * math.sqrt(o.numel()) / o.norm()
            params[i] = params[i] - lr * weight_decay * params[i] - rate * o
    return params


def run(optimizer, params, grads):
    for given in grads:
        set_grads(params, given)
        optimizer.step()


def test_twenty_steps_are_as_accurate_as_the_paper_in_float32():
    start = values(SHAPES, torch.float32)
    grads = [values(SHAPES, torch.float32, seed=step) for step in range(20)]
    params = parameters(start)
    run(NorMuon(params, lr=0.02), params, grads)
    baseline = run_paper(start, grads, torch.float32, 0.02)
    exact = run_paper(start, grads, torch.float64, 0.02)
    for shape, a, b, c in zip(SHAPES, params, baseline, exact, strict=True):
        assert_as_accurate(str(shape), a, b, c)


FORMATS = [
    (torch.float32, {}),
    (torch.bfloat16, {"weights": "split", "states": "bf16", "adjust_lr_fn": "original"}),
    (torch.bfloat16, {"weights": "master", "states": "int8", "ema_decay": 0.9, "ns_max_batch": 1}),
]


@pytest.mark.parametrize(("dtype", "options"), FORMATS, ids=str)
def test_kernels_equal_the_reference_and_resume(dtype, options):
    grads = [values([(64, 96), (7, 5)], dtype, seed=step) for step in range(4)]
    runs = []
    for backend in (*BACKENDS, BACKENDS[0]):
        params = parameters(values([(64, 96), (7, 5)], dtype))
        optimizer = NorMuon(params, lr=0.02, backend=backend, **options)
        run(optimizer, params, grads[:2])
        if len(runs) == 2:  # the third goes on from a checkpoint
            packed = copy.deepcopy(optimizer.state_dict())
            optimizer = NorMuon(params, lr=0.02, backend=backend, **options)
            optimizer.load_state_dict(packed)
        run(optimizer, params, grads[2:])
        states = [value for p in params for value in optimizer.state[p].values()]
        runs.append([*(p.detach() for p in params), *states])
        assert optimizer.state[params[0]]["row_second_moment"].shape == (64, 1)
        assert optimizer.state[params[0]]["row_second_moment"].dtype == torch.float32
    for i, (ours, theirs, resumed) in enumerate(zip(*runs, strict=True)):
        assert_same_bits(str(i), ours, theirs)
        assert_same_bits(str(i), ours, resumed)


@pytest.mark.parametrize("found_inf", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_leaves_the_moments(backend, found_inf):
    params = parameters(values([(16, 16), (8, 8)], torch.float32))
    skips = {} if found_inf else {"nonfinite": "skip"}
    optimizer = NorMuon(params, lr=0.1, backend=backend, **skips)
    run(optimizer, params, [values([(16, 16), (8, 8)], torch.float32)])
    before = copy.deepcopy([optimizer.state[p]["row_second_moment"] for p in params])
    assert all(moment.gt(0).all() for moment in before)
    optimizer.found_inf = torch.ones(1) if found_inf else None
    run(optimizer, params, [[torch.full_like(p, torch.inf) for p in params]])
    for p, moment in zip(params, before, strict=True):
        assert_same_bits("moment", optimizer.state[p]["row_second_moment"], moment)
        assert p.isfinite().all()


def test_blocks_have_moments_of_their_own():
    start, grads = values([(6, 4)], torch.float32), values([(6, 4)], torch.float32, seed=1)
    whole, parts = parameters(start), parameters([start[0][:4], start[0][4:]])
    run(NorMuon(whole, lr=0.1, split=(4, 2)), whole, [grads] * 2)
    optimizer = NorMuon(parts, lr=0.1)
    run(optimizer, parts, [[grads[0][:4], grads[0][4:]]] * 2)
    torch.testing.assert_close(whole[0].detach(), torch.cat([p.detach() for p in parts]))
    stack = torch.stack([start[0], 2 * start[0]])
    params = parameters([stack])
    experts = NorMuon(params, lr=0.1, batch_dims=1)
    run(experts, params, [[torch.stack(grads * 2)]])
    assert experts.state[params[0]]["row_second_moment"].shape == (2, 6, 1)


def test_a_matrix_without_a_gradient_only_decays():
    params = parameters([torch.ones(4, 6)])
    run(NorMuon(params, lr=0.5), params, [[torch.zeros(4, 6)]])
    torch.testing.assert_close(params[0].detach(), torch.full((4, 6), 0.95))


def test_states_that_do_not_fit_are_refused(capsys):
    params = parameters([torch.ones(4, 6)])
    optimizer = NorMuon(params)
    optimizer.state[params[0]]["row_second_moment"] = torch.zeros(6, 1)
    with pytest.raises(ValueError, match=r"must have shape \(4, 1\), got \(6, 1\)"):
        run(optimizer, params, [[torch.ones(4, 6)]])
    with pytest.raises(ValueError, match=r"beta2 must be in \[0, 1\), got 1"):
        NorMuon(params, beta2=1)
    assert memory(params, NorMuon).states == memory(params, Muon).states + 16
    capsys.readouterr()


class NoReads(TorchDispatchMode):
    """A mode in which reading a value on the host, which waits for a GPU, is an error."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host reads a value of a tensor")
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8)])
def test_the_products_do_not_wait_for_the_device(shape):
    optimizers = [Muon(parameters([torch.ones(shape)])), NorMuon(parameters([torch.ones(shape)]))]
    for optimizer in optimizers:
        step = optimizer.rule(optimizer.param_groups[0]).matrix_step
        states = tuple(torch.zeros(3, shape[0], 1) for _ in step.row_states)
        given = torch.stack(values([shape] * 3, torch.float32))
        with NoReads():
            result, _ = step.transform(given, states, step.settings)
        assert result.shape == given.shape
        with pytest.raises(AssertionError, match="the host reads"), NoReads():
            result.max().item()
