"""Bits of the kernels, compared with those of the reference.

Gradients are small multiples of 1/8, so that both form the same norm whatever the order of the sum,
and clipping is compared bit for bit too. Faults tried by hand: a scalar that differs between the
torch and Triton modules (``lr`` for ``step_size``), a missing bias correction, an operation
reordered in one of them, a codec that rounds otherwise, a row that takes another row's options in
the kernel. Faults of code that both backends share, such as the plan, only the tests against torch
detect.
"""

import math

import pytest
import torch
from helpers.models import (
    KERNELS,
    LARGE,
    SIZES,
    exact_values,
    parameters,
    set_grads,
    state_of,
    values,
)
from helpers.versions import NEEDS_GRAD_DTYPE

from ci.codegen.rules import FORMAT_PAIRS
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.step.engine import Shard
from fused_optim.testing.cases import CASES, ONE_PER_CLASS, find_case, get_name
from fused_optim.testing.closeness import assert_same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def assert_same_but_for_sums(name, actual, expected):
    """Check float64 results up to the order of their float64 sums, which shows in the last bits."""
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15, equal_nan=True, msg=name)


def compare_backends(make, start, steps, grads=None, make_params=parameters):
    """Take the same steps on both backends and compare all results.

    ``make(params, backend)`` constructs the optimizer, ``make_params(start)`` its parameters. Those
    of the kernels are returned, with their optimizer.
    """
    runs = []
    for backend in (KERNELS, "reference"):
        params = make_params(start)
        optimizer = make(params, backend)
        for step in range(steps):
            shapes = [p.shape for p in params]
            given = exact_values(shapes, torch.float32, step) if grads is None else grads[step]
            set_grads(params, given)
            optimizer.step()
        runs.append((params, optimizer))
    (params, kernel), (others, reference) = runs
    assert (kernel.backend_used, reference.backend_used) == (KERNELS, "reference")
    for i, (param, other) in enumerate(zip(params, others, strict=True)):
        same = assert_same_bits
        if param.dtype is torch.float64 and kernel.rule(kernel.param_groups[0]).reduction:
            same = assert_same_but_for_sums
        same(f"param {i} {tuple(param.shape)}", param.detach(), other.detach())
        ours, theirs = state_of(kernel, param), state_of(reference, other)
        assert ours.keys() == theirs.keys()
        for slot in ours:
            same(f"{slot} {i} {tuple(param.shape)}", ours[slot], theirs[slot])
    assert_same_bits("skipped", kernel.skipped, reference.skipped)
    assert_same_bits("clip_factor", kernel.clip_factor, reference.clip_factor)
    assert_same_bits("grad_norm", kernel.grad_norm, reference.grad_norm)
    return params, kernel


def misaligned(tensors):
    """Return parameters one element into their memory."""
    memory = [torch.cat([tensor[:1], tensor]) for tensor in tensors]
    return [torch.nn.Parameter(tensor[1:]) for tensor in memory]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=get_name)
def test_every_case_and_dtype(case, dtype):
    def make(params, backend):
        return case.fused(params, **case.options, **case.additions, backend=backend)

    start = values(SIZES, dtype)
    params, _ = compare_backends(make, start, steps=3)
    assert not torch.equal(params[-1], start[-1]), "a step that does nothing equals itself"


@pytest.mark.interpreted
@pytest.mark.parametrize("case", ONE_PER_CLASS, ids=get_name)
def test_every_optimizer(case):
    """Guard against the interpreter's own faults with one case of each optimizer."""

    def make(params, backend):
        return case.fused(params, **case.options, **case.additions, backend=backend)

    compare_backends(make, values([1, 1025], torch.float32), steps=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ONE_PER_CLASS, ids=get_name)
def test_every_optimizer_misaligned(case, dtype):
    """Guard against rows that share an alignment or a vector with their neighbours."""

    def make(params, backend):
        return case.fused(params, **case.options, **case.additions, backend=backend)

    start = values([*range(1, 66, 4), 1025], dtype)
    compare_backends(make, start, steps=2, make_params=misaligned)


# compiling takes the time, and a rule does not see how a value is stored: each has states of 16 and
# of 8 bits, and one of the other formats; AdamW has all of them in test_every_pair_of_formats
def is_stored(index, states):
    """Return True if the optimizer with this index is tested with these states."""
    eight_bits = "fp8" if index % 3 == 1 else "int8"
    return states in ("bf16", eight_bits, "fp32" if index % 2 else "param")


STORED = [
    pytest.param(case, formats, id=f"{case.name}-{'-'.join(formats.values())}")
    for i, case in enumerate(ONE_PER_CLASS)
    for formats in FORMAT_PAIRS[1:]
    if is_stored(i, formats["states"])
]


@pytest.mark.parametrize(("case", "formats"), STORED)
def test_every_optimizer_in_formats(case, formats):
    assert {param.values[0].name for param in STORED} == {case.name for case in ONE_PER_CLASS}
    compare_in_format(case, formats)


def compare_in_format(case, formats, sizes=(1, 4161, 9000)):
    """Compare the backends in a storage format, with an average."""

    def make(params, backend):
        options = {**case.options, **case.additions, **formats}
        return case.fused(params, **options, ema_decay=0.9, backend=backend)

    compare_backends(make, values(sizes, torch.bfloat16), steps=2)


@pytest.mark.interpreted(only=True)
@pytest.mark.parametrize(
    "formats", FORMAT_PAIRS[1:], ids=lambda formats: "-".join(formats.values())
)
def test_every_format_interpreted(formats):
    """Guard against formats that the interpreter computes otherwise."""
    compare_in_format(ONE_PER_CLASS[FORMAT_PAIRS.index(formats)], formats, sizes=(1, 4161))


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_pair_of_formats(weights, states):
    """Guard against random bits that differ for a shard far into its parameter."""

    def make(params, backend):
        from fused_optim import AdamW

        options = {"lr": 1e-2, "max_grad_norm": 1.0, "seed": 2**52 + 5}
        optimizer = AdamW(params, weights=weights, states=states, backend=backend, **options)
        optimizer.shard(params[0], index=3, offset=2**33 + 64, numel=2**34)
        return optimizer

    compare_backends(make, values([4161], torch.bfloat16), steps=2)


@pytest.mark.interpreted
@pytest.mark.parametrize("formats", [{"weights": "stochastic"}, {"states": "bf16"}])
def test_a_shard_of_columns(formats):
    """Guard against random bits of other columns; every third column of 2**33 rows is here."""

    def make(params, backend):
        from fused_optim import AdamW

        optimizer = AdamW(params, lr=1e-2, seed=5, backend=backend, **formats)
        optimizer._engine.shards[params[0]] = Shard(3, 2**33 + 7, 2**40, run=37, stride=111)
        return optimizer

    compare_backends(make, values([4161, 37], torch.bfloat16), steps=2)
    whole, part = (values([(13, 111)], torch.bfloat16) for _ in range(2))
    found = []
    for start, shard in (
        (whole[0], Shard(0, 0, 13 * 111)),
        (part[0][:, 37:74].contiguous(), Shard(0, 37, 13 * 111, run=37, stride=111)),
    ):
        (param,) = parameters([start])
        (optimizer,) = [make([param], KERNELS)]
        optimizer._engine.shards[param] = shard
        param.grad = torch.full_like(param, 0.25)
        optimizer.step()
        found.append(param.detach())
    assert_same_bits("columns", found[1], found[0][:, 37:74].contiguous())


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_large_tensor(name):
    case = find_case(name)
    compare_backends(
        lambda p, b: case.fused(p, 0.1, backend=b), values([LARGE], torch.float32), steps=2
    )


@pytest.mark.interpreted
def test_many_tensors_in_3_groups_of_mixed_dtypes():
    """Guard against rows that take another row's group, dtype or count."""
    many = 200 if KERNELS == "native" else 40  # the interpreter takes milliseconds for a row
    sizes = [(7 * i) % 331 for i in range(many)]
    first, second = 9 * many // 20, 3 * many // 4
    start = [v.to(DTYPES[i % 3]) for i, v in enumerate(values(sizes, torch.float32))]

    def make(params, backend):
        from fused_optim import AdamW

        groups = [
            {"params": params[:first], "lr": 0.1, "max_grad_value": 0.5},
            {"params": params[first:second], "betas": (0.5, 0.9), "l1": 0.1, "weight_decay": 0.5},
            {"params": params[second:], "maximize": True, "nonfinite": "skip", "amsgrad": True},
        ]
        return AdamW(groups, max_grad_norm=3.0, backend=backend)

    compare_backends(make, start, steps=3)


@pytest.mark.parametrize("case", CASES, ids=get_name)
def test_special_values(case):
    """Guard against other results for Inf, NaN, denormals and signed zeros."""
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 3e38, 1e-30, 1e30, 1.0]
    start = torch.tensor(special * len(special))
    grad = torch.tensor(special).repeat_interleave(len(special))

    def make(params, backend):
        options = {**case.options, **case.additions, "max_grad_norm": None}
        return case.fused(params, **options, backend=backend)

    compare_backends(make, [start, values([50], torch.float32)[0]], 3, [[grad, torch.ones(50)]] * 3)


@pytest.mark.parametrize(
    "formats", FORMAT_PAIRS[1:], ids=lambda formats: "-".join(formats.values())
)
def test_values_of_every_size_in_formats(formats):
    """Guard against other codes for the smallest values of a block, and for special ones."""
    case, grads = find_case("AdamW"), []
    for seed in range(2):
        sizes = 10.0 ** (12.0 * values([4161], torch.float32, seed + 10)[0].clamp(-2.0, 2.0))
        grad = sizes * values([4161], torch.float32, seed)[0].sign()
        grad[::97] = 0.0
        grad[:64:9] = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1e-45, -1e-40, 3e38, 1.0])
        grads.append([grad])

    def make(params, backend):
        return case.fused(params, **case.options, **formats, backend=backend)

    compare_backends(make, values([4161], torch.bfloat16), steps=2, grads=grads)


def test_randomly_valued_gradients_without_clipping():
    for case in CASES:
        if "max_grad_norm" not in case.additions and "nonfinite" not in case.additions:
            grads = [values([1025, 3], torch.float32, seed) for seed in range(5)]
            compare_backends(
                lambda p, b, c=case: c.fused(p, **c.options, **c.additions, backend=b),
                values([1025, 3], torch.float32),
                steps=3,
                grads=grads,
            )


@pytest.mark.interpreted
def test_step_counts_of_ten_million():
    """Guard against a wrong ``beta ** step`` by squaring, with different counts in one launch."""
    counts = [0.0, 1.0, 999.0, 65535.0, 1e7]

    def make(params, backend):
        from fused_optim import AdamW

        optimizer = AdamW(params, betas=(0.9, 0.999999), backend=backend)
        for param, count in zip(params, counts, strict=True):
            optimizer.state[param] = {
                "step": torch.tensor(count),
                "exp_avg": torch.full_like(param, 0.1),
                "exp_avg_sq": torch.full_like(param, 0.01),
            }
        return optimizer

    params, kernel = compare_backends(make, values([40] * 5, torch.float32), steps=2)
    assert [kernel.state[p]["step"].item() for p in params] == [c + 2 for c in counts]


@NEEDS_GRAD_DTYPE
def test_gradient_dtype_may_differ_from_the_parameters():
    for grad_dtype in (torch.bfloat16, torch.float32):
        grads = [[g.to(grad_dtype) for g in exact_values([1025], torch.float32)]] * 2

        def make(params, backend):
            from fused_optim import AdamW

            return AdamW(params, backend=backend)

        runs = []
        for backend in (KERNELS, "reference"):
            params = parameters(values([1025], torch.bfloat16))
            params[0].grad_dtype = None
            optimizer = make(params, backend)
            for given in grads:
                params[0].grad = given[0].clone()
                optimizer.step()
            assert params[0].grad.dtype == grad_dtype
            runs.append(params[0].detach())
        assert_same_bits("param", *runs)
