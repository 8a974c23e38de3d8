"""Storage formats: exactness, unbiased rounding, shards, and the range of 8-bit scales."""

import math

import pytest
import torch
from helpers.format_runs import random_grads, train_shards, trained, weight
from helpers.models import parameters, set_grads, values
from torch.nn import Parameter

import fused_optim
from fused_optim import AdamW
from fused_optim.formats import conversion
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.testing.cases import ONE_PER_CLASS, get_name
from fused_optim.testing.closeness import assert_same_bits

BF16 = torch.bfloat16
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 3.4e38, -3e38, 1e-30, 1.0]


# ---- lossless


@pytest.mark.parametrize("case", ONE_PER_CLASS, ids=get_name)
def test_split_is_a_float32_master(case):
    """Guard against split weights that differ from a float32 master rounded half up."""
    steps = 80 if case.fused is AdamW else 30
    options = {**case.options, **case.additions, "states": "fp32", "backend": "reference"}
    special = torch.tensor(SPECIAL, dtype=BF16)
    start = torch.cat([values([50], BF16)[0], special.repeat_interleave(len(SPECIAL))])
    runs = {name: parameters([start]) for name in ("master", "split")}
    optimizers = {n: case.fused(params, weights=n, **options) for n, params in runs.items()}
    grads = [values([len(start)], BF16, seed)[0] for seed in range(20)]
    for step in range(steps):
        grad = grads[step % 20].clone()
        if step == steps // 2:
            grad[50:] = special.repeat(len(SPECIAL))
        for name, params in runs.items():
            set_grads(params, [grad])
            optimizers[name].step()
        master, split = (weight(optimizers[n], runs[n][0]) for n in runs)
        finite = ~master.isnan()
        assert torch.equal(split.isnan(), ~finite)
        assert_same_bits(f"step {step}", split[finite], master[finite])
        bits = split.view(torch.int32)
        rounded = ((bits + 0x8000) & -0x10000).view(torch.float32)
        rounded = torch.where(split.isfinite(), rounded, split)
        assert_same_bits(f"step {step}", runs["split"][0].detach().float(), rounded)
    assert not torch.equal(split[:50], start[:50].float())


def all_bits(count=250_000, seed=0):
    """Return float32 values of every exponent, with NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator)
    special = torch.tensor([*SPECIAL, 3.4028234663852886e38, -3.3961775292304957e38])
    return torch.cat([bits.int().view(torch.float32), special])


@pytest.mark.parametrize("name", ["split", "split24", "kahan", "master"])
def test_every_float32_is_kept(name):
    """Guard against more rounding than the bits of a format require."""
    value = all_bits()
    codec = WEIGHTS[name].codec
    decoded = conversion.decode(
        codec, conversion.encode(codec, value, value.to(BF16)), torch.float32
    )
    assert torch.equal(decoded.isnan(), value.isnan())
    number = ~value.isnan()
    if name in ("split", "master"):
        # a parameter of zero has no extra bits, so that a written zero is one
        zero = (value.abs() < 2.0**-134) & (name == "split")
        expected = torch.where(zero, torch.copysign(torch.zeros(()), value), value)
        assert_same_bits(name, decoded[number], expected[number])
    # where kahan's second bf16, or the range of bf16, does not end first
    usual = value.isfinite() & (value.abs() > 1e-30) & (value.abs() < 3.38e38)
    error = ((decoded.double() - value.double()) / value.double())[usual].abs().max()
    assert error <= {"split": 0, "master": 0, "split24": 2.0**-15, "kahan": 2.0**-16}[name]
    assert torch.equal(decoded[value.isinf()], value[value.isinf()]) or name == "kahan"


# ---- small steps


@pytest.mark.parametrize("name", ["kahan", "split", "split24", "stochastic", "master"])
def test_decay_survives(name):
    """Guard against a decay of 1e-4 a step lost below half an ulp of bf16."""
    start = [torch.ones(4096, dtype=BF16)]
    options = {"lr": 1e-3, "weight_decay": 0.1, "weights": name, "backend": "reference"}
    params, optimizer = trained(start, [[torch.zeros(4096)]] * 200, options)
    expected = (1 - 1e-4) ** 200  # 0.9802
    result = weight(optimizer, params[0])
    assert abs(result.mean() - expected) < (2e-3 if name == "stochastic" else 3e-5)
    within = {"stochastic": 0.1, "split24": 2e-3, "kahan": 1e-3}.get(name, 1e-5)
    assert (result - expected).abs().max() < within


def test_decay_does_not_survive_in_plain_bf16():
    start = [torch.ones(64, dtype=BF16)]
    options = {"lr": 1e-3, "weight_decay": 0.1, "backend": "reference"}
    params, _ = trained(start, [[torch.zeros(64)]] * 20, options)
    assert torch.equal(params[0], start[0])


@pytest.mark.parametrize("name", ["kahan", "split", "split24", "stochastic", "master"])
def test_tiny_updates_add_up(name):
    """Guard against steps of 1e-5 lost, each 1/200 of half an ulp."""
    start = [torch.ones(4096, dtype=BF16)]
    options = {"lr": 1e-5, "weights": name, "backend": "reference"}
    params, optimizer = trained(start, [[torch.ones(4096)]] * 250, options, fused=fused_optim.SGD)
    moved = 1.0 - weight(optimizer, params[0])
    if name in ("stochastic", "split24", "kahan"):
        assert abs(moved.mean() - 0.0025) < 3 * moved.std() / 64 + 1e-4
        assert moved.std() < {"stochastic": 1e-2, "split24": 1e-3, "kahan": 2e-4}[name]
    else:
        assert (moved - 0.0025).abs().max() < 1e-4
    plain, _ = trained(start, [[torch.ones(4096)]] * 10, {"lr": 1e-5}, fused=fused_optim.SGD)
    assert torch.equal(plain[0], start[0])


def test_bf16_squares_decay():
    """Guard against rounding to nearest, under which exp_avg_sq cannot decay."""
    start = [torch.ones(4096, dtype=BF16)]
    grads = [[torch.ones(4096)], *[[torch.zeros(4096)]] * 150]
    means = {}
    for states in ("param", "bf16", "fp32", "int8", "fp8"):
        _, optimizer = trained(start, grads, {"states": states, "backend": "reference"})
        packed = optimizer.state_dict(format="torch")["state"][0]
        means[states] = packed["exp_avg_sq"].mean().item()
    expected = 1e-3 * 0.999**150
    assert means["fp32"] == pytest.approx(expected, rel=1e-4)
    for states in ("bf16", "int8", "fp8"):
        assert means[states] == pytest.approx(expected, rel=0.03)
    assert means["param"] == pytest.approx(1e-3, rel=0.01)


# ---- stochastic rounding


def draws(codec, value, count):
    """Return ``count`` values of one element, each with its own random bits."""
    start = torch.full((count,), value)
    tensors = conversion.encode(codec, start, start.to(BF16))
    return conversion.decode(codec, tensors, torch.float32).double()


@pytest.mark.parametrize("codec", ["stochastic", "split24"])
@pytest.mark.parametrize("value", [1.001, -3.3e-5, 1.2345e-30, 7.77e30, 1e-40])
def test_stochastic_rounding_is_unbiased(codec, value):
    result = draws(WEIGHTS[codec].codec, value, 250_000)
    exact = torch.tensor(value).double()
    error = result.std() / 500
    assert error > 0 or torch.equal(result, exact.expand_as(result))
    assert abs(result.mean() - exact) <= 3 * error


@pytest.mark.parametrize("states", ["int8", "fp8", "bf16"])
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_states_are_unbiased(states, kind):
    """Guard against a mean error over a block of many sizes."""
    codec = getattr(STATES[states], kind)
    generator = torch.Generator().manual_seed(0)
    block = torch.rand(64, generator=generator) + 0.01
    block[0] = 1.97  # between the largest code and the next power of two
    if kind == "signed":
        block *= torch.randn(64, generator=generator).sign()
    value = block.repeat(5_000)
    result = conversion.decode(codec, conversion.encode(codec, value, value), torch.float32)
    error = (result.double() - value.double()).view(-1, 64)
    bound = 4.5 * error.std(0) / math.sqrt(len(error))  # the largest of 64 normal means
    assert (error.mean(0).abs() <= bound + 1e-12).all()
    assert error.std() > 0


@pytest.mark.parametrize("states", ["int8", "fp8", "bf16"])
def test_what_can_be_represented_is_not_rounded(states):
    for codec in STATES[states]:
        value = values([4096], torch.float32)[0].abs()
        once = conversion.decode(codec, conversion.encode(codec, value, value), torch.float32)
        for shift in range(3):  # other elements, so other random bits
            again = torch.roll(once, 64 * shift)
            decoded = conversion.decode(
                codec, conversion.encode(codec, again, value), torch.float32
            )
            assert_same_bits(f"{states} {shift}", decoded, again)


@pytest.mark.parametrize("shards", [2, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"weights": "stochastic", "states": "int8"},
        {"weights": "split24", "states": "bf16"},
    ],
)
def test_shards_round_as_the_whole(shards, options):
    """Guard against random bits that depend on the shard."""
    start, grads = values([20_000], BF16)[0], random_grads([20_000], 3)
    options = {**options, "lr": 0.1, "backend": "reference"}
    (whole,), optimizer = trained([start], grads, options)
    cuts = [(20_000 * i // shards) // 64 * 64 for i in range(shards)] + [20_000]
    parts = train_shards(start, grads, cuts, options)
    assert_same_bits("param", torch.cat([param.detach() for param, _ in parts]), whole.detach())
    for name, value in optimizer.state[whole].items():
        if name != "step":
            assert torch.equal(
                torch.cat([part.state[param][name] for param, part in parts]).view(torch.uint8),
                value.view(torch.uint8),
            ), name


def test_a_small_shard_of_a_large_parameter_has_its_format():
    param = Parameter(torch.zeros(128, dtype=BF16))
    optimizer = AdamW([param], states="int8")
    optimizer.shard(param, index=0, offset=64, numel=5000)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype is torch.int8


@pytest.mark.parametrize(
    "wrong", [{"offset": 1}, {"offset": -64}, {"offset": 4992}, {"index": -1}, {"numel": 10}]
)
def test_a_shard_lies_in_the_whole(wrong):
    param = Parameter(torch.zeros(128))
    optimizer = AdamW([param], states="int8")
    with pytest.raises(ValueError, match="offset must be"):
        optimizer.shard(param, **{"index": 0, "offset": 64, "numel": 5000, **wrong})
    with pytest.raises(KeyError):
        optimizer.shard(Parameter(torch.zeros(1)), index=0, offset=0, numel=1)


def test_rounding_depends_on_the_seed_the_parameter_and_the_step():
    start = [torch.full((4096,), 1.0 + 2**-7, dtype=BF16)] * 2
    grads = [[torch.ones(4096)] * 2]
    options = {"lr": 1e-3, "weights": "stochastic", "backend": "reference"}
    (first, second), _ = trained(start, grads, options, fused=fused_optim.SGD)
    (other, _), _ = trained(start, grads, options, fused=fused_optim.SGD, seed=1)
    (again, _), _ = trained(start, grads, options, fused=fused_optim.SGD)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    params = parameters(start)
    later = fused_optim.SGD(params, **options)
    later.state[params[0]]["step"] = torch.tensor(1.0)
    set_grads(params, grads[0])
    later.step()
    assert not torch.equal(params[0], first), "the second step has bits of its own"
    assert torch.equal(params[1], second)


# ---- 8 bits


def test_no_update_explodes():
    """Guard against codes of 0 for small squares in a block with large ones."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(1 << 16, generator=generator).exp()
    largest = {}
    for states in ("fp32", "int8", "fp8"):
        param = Parameter(torch.zeros(1 << 16))
        optimizer = AdamW([param], lr=1.0, weight_decay=0, states=states, backend="reference")
        generator = torch.Generator().manual_seed(1)
        updates = []
        for _ in range(40):
            before = param.detach().clone()
            param.grad = 1e-3 * scale * torch.randn(1 << 16, generator=generator)
            optimizer.step()
            updates.append((param.detach() - before).abs().max())
        largest[states] = max(updates)
    assert largest["int8"] < 3 * largest["fp32"]
    assert largest["fp8"] < 3 * largest["fp32"]


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e8])
@pytest.mark.parametrize("states", ["int8", "fp8"])
def test_scales_reach_far(size, states):
    start, grads = [torch.zeros(8192)], [[size * g[0]] for g in random_grads([8192], 20)]
    grads = [[g[0].float()] for g in grads]
    exact = trained(start, grads, {"lr": 1.0, "weight_decay": 0, "eps": 0.0})
    result = trained(start, grads, {"lr": 1.0, "weight_decay": 0, "eps": 0.0, "states": states})
    difference = (result[0][0] - exact[0][0]).detach()
    assert difference.isfinite().all()
    assert difference.square().mean().sqrt() < 0.2 * exact[0][0].detach().square().mean().sqrt()


@pytest.mark.parametrize("states", ["int8", "fp8"])
def test_zero_stays_zero_and_nothing_else_becomes_zero(states):
    codec = STATES[states].unsigned
    value = torch.zeros(256)
    value[::7] = 1e-20
    value[3] = 1.0
    decoded = conversion.decode(codec, conversion.encode(codec, value, value), torch.float32)
    assert torch.equal(decoded == 0, value == 0)
    for codec in STATES[states]:
        assert not conversion.decode(
            codec, conversion.allocate(codec, torch.zeros(100)), torch.float32
        ).any()


@pytest.mark.parametrize("states", ["int8", "fp8"])
def test_one_nan_is_one_nan(states):
    for codec in STATES[states]:
        value = torch.ones(128)
        value[5], value[70] = math.nan, math.inf
        decoded = conversion.decode(codec, conversion.encode(codec, value, value), torch.float32)
        assert decoded[[5, 70]].isnan().all()
        assert decoded.isnan().sum() == 2


def test_small_tensors_keep_float32():
    params, optimizer = trained(
        values([4095, 4096], BF16), random_grads([4095, 4096], 1), {"states": "int8"}
    )
    small, large = (optimizer.state[p] for p in params)
    assert small["exp_avg"].dtype is torch.float32
    assert "exp_avg_scale" not in small
    assert large["exp_avg"].dtype is torch.int8
    assert large["exp_avg_sq"].dtype is torch.uint8
    assert large["exp_avg_scale"].shape == (64,)
