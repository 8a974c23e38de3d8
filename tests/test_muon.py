"""Muon: the step beside torch.optim.Muon and beside the polar factor, on both backends.

``run_exact`` is Muon in float64 with the polynomials applied to the singular values. torch rounds
each product to bf16; ours has products of float32 on the CPU, and must not be farther from float64.

Faults tried by hand: rows and columns of a factor exchanged, a polynomial with c in place of b, the
restart of the Gram iteration left out, the momentum of the unclipped gradient, Nesterov's direction
of the old momentum, decay of the direction, blocks of a split that begin one row late.
"""

import copy
import math

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values
from helpers.tolerances import assert_as_accurate, assert_same_bits, join_flat
from torch import nn

from fused_optim import AdamW, Muon, from_torch, memory
from fused_optim.matrix.newton_schulz import DEFAULT_COEFFICIENTS, POLAR_EXPRESS, lr_factor

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


def test_one_norm_clips_both_rules():
    """Compare a model in one optimizer with torch's two optimizers and clip_grad_norm_."""
    start = values([(32, 48), (48,), (64, 32)], torch.float32)
    grads = [values([(32, 48), (48,), (64, 32)], torch.float32, seed=step) for step in range(10)]
    params = parameters(start)
    adamw = {"algorithm": "adamw", "lr": 3e-3, "weight_decay": 0.2}
    groups = [{"params": params[:1]}, {"params": params[1:], **adamw}]
    optimizer = Muon(groups, lr=0.02, max_grad_norm=1.0)
    run(optimizer, params, grads)
    theirs, scaled = parameters(start), []
    for given in grads:
        factor = min(1.0, 1.0 / (math.sqrt(sum(float(g.double().square().sum()) for g in given))))
        scaled.append([factor * g for g in given])
    run(
        torch.optim.AdamW(theirs[1:], lr=3e-3, weight_decay=0.2),
        theirs[1:],
        [g[1:] for g in scaled],
    )
    exact = run_exact(start[:1], [g[:1] for g in scaled], lr=0.02)
    torch.testing.assert_close(params[0].detach(), exact[0].float(), rtol=0, atol=2e-5)
    torch.testing.assert_close(params[1:], theirs[1:], rtol=0, atol=2e-6)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads[-1]))
    assert math.isclose(optimizer.grad_norm, norm, rel_tol=1e-6)
    assert sorted(optimizer.state[params[0]]) == ["momentum_buffer"]
    assert sorted(optimizer.state[params[1]]) == ["exp_avg", "exp_avg_sq", "step"]


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


def test_equal_shapes_are_one_product(monkeypatch):
    """Guard against a loop over matrices, and against batches above ns_max_batch."""
    sizes, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: sizes.append(len(a)) or bmm(a, b))
    params = parameters(values([(8, 8), (8, 9), (8, 8), (8, 8)], torch.float32))
    for most, expected in ((None, [3, 1]), (2, [2, 1, 1])):
        optimizer = Muon(params, ns_steps=1, ns_max_batch=most)
        set_grads(params, values([(8, 8), (8, 9), (8, 8), (8, 8)], torch.float32))
        sizes.clear()
        optimizer.step()
        assert sizes == expected


def test_checkpoints_both_ways_and_with_two_rules():
    start = values([(8, 12), (12,)], torch.float32)
    grads = [values([(8, 12), (12,)], torch.float32, seed=step) for step in range(3)]
    theirs = parameters(start[:1])
    torch_optimizer = torch.optim.Muon(theirs, lr=0.02)
    run(torch_optimizer, theirs, [g[:1] for g in grads])
    ours = parameters(theirs)
    optimizer = Muon(ours)
    optimizer.load_state_dict(torch_optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert_same_bits(
        "momentum",
        optimizer.state[ours[0]]["momentum_buffer"],
        torch_optimizer.state[theirs[0]]["momentum_buffer"],
    )
    back = torch.optim.Muon(theirs)
    back.load_state_dict(optimizer.state_dict())
    assert isinstance(from_torch(back), Muon)

    def groups(p):
        return [{"params": p[:1]}, {"params": p[1:], "algorithm": "adamw", "lr": 1e-3}]

    params = parameters(start)
    one = Muon(groups(params), lr=0.02)
    run(one, params, grads)
    others = parameters(params)
    two = Muon(groups(others))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    run(one, params, grads)
    run(two, others, grads)
    for a, b in zip(params, others, strict=True):
        assert_same_bits("resumed", a.detach(), b.detach())
    assert "momentum" not in two.param_groups[1]


def group(**options):
    return [{"params": [torch.ones(3, 3, requires_grad=True)], **options}]


WRONG = [
    (group(algorithm="adamw", momentum=0.9), "no option 'momentum': its options are .*betas"),
    (group(algorithm="adamx"), "algorithm must be one of 'muon', 'adadelta'"),
    (group(algorithm="schedulefreeadamw"), r"it needs train\(\) and eval\(\)"),
    (group(algorithm="adamw", betas=(0.9, 1.5)), r"betas\[1\] must be in \[0, 1\), got 1.5"),
    (group(ns_steps=100), r"ns_steps must be a whole number in \[0, 99\], got 100"),
    (group(adjust_lr_fn="x"), "Adjust learning rate function x is not supported"),
    (group(ns_coefficients=(1, 2)), "Coefficients must be a tuple of exactly 3 values"),
    (group(ns_coefficients=[(1, 2, 3)]), "a triple for each of ns_steps=5 steps, got 1"),
    (group(ns_dtype=torch.int8), "ns_dtype must be one of torch.bfloat16"),
    (group(split=(1, 1)), r"must have 2 rows for split=\(1, 1\), got 3"),
    (group(heads=2), "a number of rows that heads=2 divides, got 3"),
    ([torch.ones(3, requires_grad=True)], "Muon only supports 2D parameters.*algorithm='adamw'"),
    ([torch.ones(3, 2, 2, requires_grad=True)], "pass batch_dims=0 to flatten"),
    ([torch.ones(3, 2, dtype=torch.complex64, requires_grad=True)], "support complex parameters"),
]


@pytest.mark.parametrize(("params", "message"), WRONG, ids=[message for _, message in WRONG])
def test_mistakes_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        Muon(params)


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
