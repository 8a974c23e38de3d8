"""Muon: the step beside torch.optim.Muon and beside the polar factor, on both backends.

``run_exact`` is Muon in float64 with the polynomials applied to the singular values. torch rounds
each product to bf16; ours has products of float32 on the CPU, and must not be farther from float64.

Faults tried by hand: rows and columns of a factor exchanged, a polynomial with c in place of b, the
restart of the Gram iteration left out, the momentum of the unclipped gradient, Nesterov's direction
of the old momentum, decay of the direction, blocks of a split that begin one row late.
"""

import math

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values
from helpers.versions import NEEDS_TORCH_MUON
from torch import nn

from fused_optim import AdamW, Muon, memory
from fused_optim.matrix.newton_schulz import DEFAULT_COEFFICIENTS, POLAR_EXPRESS
from fused_optim.testing.closeness import assert_as_accurate, assert_same_bits, join_flat

SHAPES = [(64, 64), (48, 200), (96, 32), (64, 64), (50, 7), (1, 9), (9, 1)]
OPTIONS = [
    {},
    {"nesterov": False, "momentum": 0.8, "weight_decay": 0.3},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "lr": torch.tensor(0.02)},
    {"ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-3, "adjust_lr_fn": "original"},
]


def polar(matrix, triples, eps=1e-7):
    """Return U f(S) V^T in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / max(matrix.double().norm().item(), eps)
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ v


def lr_factor(rows, columns, adjust):
    """Return the factor of the learning rate of a matrix, as torch.optim.Muon documents it."""
    if adjust == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5


def run_exact(start, grads, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, **rest):
    """Return the parameters after a step for each of ``grads``, in float64."""
    triples = [rest.get("ns_coefficients", DEFAULT_COEFFICIENTS)] * rest.get("ns_steps", 5)
    adjust, eps = rest.get("adjust_lr_fn") or "original", rest.get("eps", 1e-7)
    params = [p.double().clone() for p in start]
    buffers = [torch.zeros_like(p) for p in params]
    for given in grads:
        for p, buffer, g in zip(params, buffers, given, strict=True):
            buffer.lerp_(g.double(), 1 - momentum)
            direction = g.double().lerp(buffer, momentum) if nesterov else buffer
            factor = lr_factor(*p.shape, adjust)
            p.mul_(1 - lr * weight_decay).sub_(lr * factor * polar(direction, triples, eps))
    return params


def run(optimizer, params, grads, clip=None):
    for given in grads:
        set_grads(params, given)
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
    return [p.detach() for p in params]


@NEEDS_TORCH_MUON
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fifty_steps_are_no_farther_from_float64_than_torch(options):
    start = values(SHAPES, torch.float32)
    grads = [values(SHAPES, torch.float32, seed=step) for step in range(50)]
    options = {"lr": 0.02, **options}
    ours, theirs = parameters(start), parameters(start)
    run(Muon(ours, **options), ours, grads)
    run(torch.optim.Muon(theirs, **options), theirs, grads)
    exact = run_exact(start, grads, **{**options, "lr": float(options["lr"])})
    for shape, a, b, c in zip(SHAPES, ours, theirs, exact, strict=True):
        assert_as_accurate(str(shape), a, b, c)


@pytest.mark.parametrize("algorithm", ["standard", "gram"])
def test_float64_differs_from_the_polynomials_by_rounding_only(algorithm):
    start = values(SHAPES, torch.float64)
    grads = [values(SHAPES, torch.float64, seed=step) for step in range(5)]
    params = parameters(start)
    options = {"ns_algorithm": algorithm, "ns_dtype": torch.float64, "lr": 0.02}
    run(Muon(params, **options), params, grads)
    torch.testing.assert_close([*map(torch.detach, params)], run_exact(start, grads, lr=0.02))
    assert_as_accurate(
        algorithm,
        join_flat(params),
        join_flat(run_exact(start, grads, lr=0.02 + 1e-12)),  # a relative change of 5e-11
        join_flat(run_exact(start, grads, lr=0.02)),
    )


FORMATS = [
    (torch.float32, {}),
    (torch.float32, {"states": "bf16", "max_grad_norm": 1.0, "ema_decay": 0.9}),
    (torch.bfloat16, {"weights": "master", "states": "int8", "nonfinite": "skip"}),
    (torch.bfloat16, {"weights": "split", "states": "fp8", "l1": 1e-3, "max_grad_value": 0.5}),
    (torch.bfloat16, {"weights": "kahan", "states": "fp32", "count_stalled": True}),
    (torch.bfloat16, {"weights": "stochastic", "ns_dtype": torch.bfloat16, "maximize": True}),
    (torch.float64, {"ns_max_batch": 1}),
]


@pytest.mark.parametrize(("dtype", "options"), FORMATS, ids=str)
def test_kernels_equal_the_reference(dtype, options):
    runs = []
    for backend in BACKENDS:
        params = parameters(values([(64, 96), (7, 5), (64, 96)], dtype))
        optimizer = Muon(params, lr=0.02, backend=backend, **options)
        for step in range(4):
            grads = values([(64, 96), (7, 5), (64, 96)], dtype, seed=step)
            if step == 2:
                grads[1][0, 0] = torch.inf if "nonfinite" in options else 1.0
            set_grads(params, grads)
            optimizer.step()
        states = [value for p in params for value in optimizer.state[p].values()]
        runs.append([*(p.detach() for p in params), *states])
    for i, (ours, theirs) in enumerate(zip(*runs, strict=True)):
        assert_same_bits(str(i), ours, theirs)
        assert ours.double().isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_prepared_once(backend):
    """Sign, clipping by value and L1 enter the momentum, and not the direction once more."""
    start, grad = values([(8, 12)], torch.float32), values([(8, 12)], torch.float32, seed=1)
    one, two = parameters(start), parameters(start)
    optimizer = Muon(one, lr=0.1, maximize=True, max_grad_value=0.5, l1=0.25, backend=backend)
    run(optimizer, one, [grad])
    prepared = (-grad[0]).clamp(-0.5, 0.5) + 0.25 * start[0].sign()
    run(Muon(two, lr=0.1, backend=backend), two, [[prepared]])
    assert_same_bits("param", one[0].detach(), two[0].detach())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scaler_unscales_and_skips(backend):
    start, grad = values([(8, 12)], torch.float32), values([(8, 12)], torch.float32, seed=1)
    one, two = parameters(start), parameters(start)
    optimizer = Muon(one, lr=0.1, l1=0.25, backend=backend)
    for found_inf in (1.0, 0.0):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(64.0), torch.tensor(found_inf)
        run(optimizer, one, [[64 * grad[0]]])
        if found_inf:
            assert_same_bits("skipped", one[0].detach(), start[0])
    run(Muon(two, lr=0.1, l1=0.25, backend=backend), two, [grad])
    assert_same_bits("param", one[0].detach(), two[0].detach())


INTERVALS = [  # of the composed polynomials on singular values in [0.02, 1]
    ("default", [DEFAULT_COEFFICIENTS] * 5),
    ("polar_express", list(POLAR_EXPRESS[:5])),
]


@pytest.mark.parametrize(("name", "triples"), INTERVALS, ids=["default", "polar_express"])
@pytest.mark.parametrize("algorithm", ["standard", "gram"])
def test_singular_values_are_in_the_interval_of_the_polynomials(name, triples, algorithm):
    """The gradient has singular values of four orders of magnitude."""
    s = torch.logspace(-4, 0, 24, dtype=torch.float64)
    u, v = (torch.linalg.qr(x.double())[0] for x in values([(24, 24), (96, 24)], torch.float32))
    params = parameters([torch.zeros(24, 96)])
    options = {} if name == "default" else {"ns_coefficients": name}
    optimizer = Muon(params, lr=1.0, momentum=0.0, ns_algorithm=algorithm, **options)
    set_grads(params, [(u @ torch.diag(s) @ v.T).float()])
    optimizer.step()
    found = torch.linalg.svdvals(params[0].detach().double())
    expected = s / s.norm()
    for a, b, c in triples:
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(found, expected.sort(descending=True)[0], rtol=2e-4, atol=2e-4)
    large = s / s.norm() > 0.02
    assert 0.6 < expected[large].min() < expected[large].max() < 1.3


def test_polar_express_composes_to_one():
    s = torch.logspace(-3, 0, 1000, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(s, torch.ones_like(s), rtol=0, atol=1e-3)


EXTREMES = {
    "zero": torch.zeros(8, 12),
    "rank 1": torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 13)),
    "1e30": 1e30 * torch.ones(8, 12),
    "1e-30": 1e-30 * torch.eye(8, 12),
    "1 x n": torch.arange(1.0, 13)[None],
    "n x 1": torch.arange(1.0, 9)[:, None],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_matrices(name, dtype):
    grad = EXTREMES[name].to(dtype)
    params = parameters([torch.zeros_like(grad)])
    optimizer = Muon(params, lr=1.0, momentum=0.0, weight_decay=0.0, ns_dtype=torch.float32)
    set_grads(params, [grad])
    optimizer.step()
    exact = -lr_factor(*grad.shape, "original") * polar(grad, [DEFAULT_COEFFICIENTS] * 5)
    torch.testing.assert_close(params[0].detach().double(), exact, rtol=1e-2, atol=1e-5)


def test_a_skipped_step_leaves_momentum_and_weights():
    params = parameters(values([(16, 16)], torch.float32))
    optimizer = Muon(params, lr=0.1, nonfinite="skip", ema_decay=0.5)
    for value in (1.0, torch.nan, 2.0, torch.inf):
        before = [
            params[0].detach().clone(),
            *map(torch.clone, optimizer.state[params[0]].values()),
        ]
        set_grads(params, [torch.full((16, 16), value)])
        optimizer.step()
        after = [params[0].detach(), *optimizer.state[params[0]].values()]
        if not math.isfinite(value):
            for a, b in zip(before, after, strict=True):
                assert_same_bits(str(value), a, b)
    assert optimizer.state[params[0]]["step"] == 2
    assert params[0].isfinite().all()


CUTS = [
    ((6, 4), {"split": (3, 2, 1)}, [(slice(0, 3),), (slice(3, 5),), (slice(5, 6),)]),
    ((6, 4), {"heads": 3}, [(slice(0, 2),), (slice(2, 4),), (slice(4, 6),)]),
    ((3, 4, 5), {"batch_dims": 1}, [(0,), (1,), (2,)]),
    (
        (2, 4, 5),
        {"batch_dims": 1, "heads": 2},
        [(i, slice(j, j + 2)) for i in (0, 1) for j in (0, 2)],
    ),
    ((6, 3, 2, 2), {"batch_dims": 0}, [(slice(None),)]),
]


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize(("shape", "options", "blocks"), CUTS, ids=str)
def test_matrices_within_a_parameter(shape, options, blocks, layout):
    """Each block is updated as a parameter of its own, with the factor of its own shape."""
    start, grad = values([shape], torch.float32)[0], values([shape], torch.float32, seed=1)[0]
    whole = start.clone()
    if layout == "permuted":  # channels_last, or transposed matrices
        whole = (
            whole.contiguous(memory_format=torch.channels_last)
            if len(shape) == 4
            else whole.mT.contiguous().mT
        )
    whole = nn.Parameter(whole)
    options = {"lr": 0.1, **options}
    whole.grad = grad.clone()
    Muon([whole], **options).step()
    plain = {"lr": 0.1, "ns_algorithm": "auto"}
    for block in blocks:
        part = nn.Parameter(start[block].flatten(1) if len(shape) == 4 else start[block].clone())
        part.grad = grad[block].flatten(1) if len(shape) == 4 else grad[block].clone()
        Muon([part], **plain).step()
        expected = part.detach().view(start[block].shape)
        torch.testing.assert_close(whole.detach()[block], expected, rtol=1e-5, atol=1e-6)


def test_small_matrices_of_similar_shapes_are_one_product(monkeypatch):
    """Guard against the factor of a padded shape, and against padding of unlike matrices."""
    shapes = [(8, 8), (11, 8), (8, 12), (12, 8), (8, 19), (9, 12)]
    start, grads = values(shapes, torch.float64), values(shapes, torch.float64, seed=1)
    options = {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_dtype": torch.float64}
    params = parameters(start)
    set_grads(params, grads)
    sizes, bmm = [], torch.bmm
    with monkeypatch.context() as context:
        context.setattr(torch, "bmm", lambda a, b: sizes.append(a.shape) or bmm(a, b))
        Muon(params, **options, ns_steps=1).step()
    # that of 8 x 19 is by the Gram matrix: a product more
    assert sizes == [(4, 8, 12), (1, 8, 19), (1, 8, 8), (1, 9, 12)]
    params = parameters(start)
    run(Muon(params, **options), params, [grads])
    exact = run_exact(start, [grads], lr=0.1, adjust_lr_fn="match_rms_adamw")
    torch.testing.assert_close([p.detach() for p in params], exact, rtol=1e-10, atol=1e-12)


def test_equal_shapes_are_one_product(monkeypatch):
    """Guard against a loop over matrices, and against batches above ns_max_batch."""
    sizes, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: sizes.append(len(a)) or bmm(a, b))
    params = parameters(values([(8, 8), (8, 13), (8, 8), (8, 8)], torch.float32))
    for most, expected in ((None, [3, 1]), (2, [2, 1, 1])):
        optimizer = Muon(params, ns_steps=1, ns_max_batch=most)
        set_grads(params, values([(8, 8), (8, 13), (8, 8), (8, 8)], torch.float32))
        sizes.clear()
        optimizer.step()
        assert sizes == expected


def test_autocast_does_not_change_the_products():
    results = []
    for enabled in (False, True):
        params = parameters(values([(32, 32)], torch.float32))
        optimizer = Muon(params)
        set_grads(params, values([(32, 32)], torch.float32, seed=1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            optimizer.step()
        results.append(params[0].detach())
    assert_same_bits("autocast", *results)


def test_memory_counts_both_passes(capsys):
    """28 bytes: parameter read twice and written, gradient, momentum twice, direction twice."""
    params = parameters(values([(64, 64)], torch.float32))
    estimate = memory(params, Muon)
    assert estimate.moved / estimate.numel == 3 * 4 + 4 + 2 * 4 + 2 * 2
    assert memory(params, AdamW).moved / estimate.numel == 28
    assert "moved" in capsys.readouterr().out
