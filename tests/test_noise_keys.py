"""Stochastic rounding depends on each part of its key, on nothing else, and is unbiased.

The key is the seed, the step, the index of the parameter, the value (weight or state) and the index
of the element in the whole parameter.
"""

import copy

import pytest
import torch
from helpers.models import BACKENDS, parameters

from fused_optim import SGD, AdamW
from fused_optim.formats import conversion
from fused_optim.formats.registry import STATES
from fused_optim.testing.closeness import assert_same_bits

BF16 = torch.bfloat16
NUMEL = 6400
on_each = pytest.mark.parametrize("backend", BACKENDS)


def take_steps(backend, steps=1, shard=None, cls=AdamW, **options):
    """Return the parameter after steps whose updates are far below half an ulp."""
    (param,) = parameters([torch.ones(NUMEL, dtype=BF16)])
    options = {"lr": 1e-3, "weights": "stochastic", "seed": 5, **options}
    optimizer = cls([param], backend=backend, **options)
    if shard is not None:
        optimizer.shard(param, **shard)
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()
    return param, optimizer


@on_each
@pytest.mark.parametrize("seed", [6, 5 + 2**32, 5 + 2**40])
def test_every_bit_of_the_seed_counts(backend, seed):
    """Guard against a seed that is cut to 32 bits."""
    one, other = (take_steps(backend, seed=s)[0] for s in (5, seed))
    same = (one == other).float().mean().item()
    # each element is 1 or one ulp below, with probabilities p and 1 - p
    p = (one == 1).float().mean().item()
    assert same == pytest.approx(p * p + (1 - p) * (1 - p), abs=0.04)


@on_each
@pytest.mark.parametrize(
    "shard",
    [
        {"index": 0, "offset": 2**32, "numel": 2**33},
        {"index": 0, "offset": 64, "numel": 2**33},
        {"index": 1, "offset": 0, "numel": NUMEL},
    ],
    ids=["offset 2**32", "offset 64", "index"],
)
def test_the_position_counts(backend, shard):
    """Guard against offsets of 32 bits, and an index of a shard that nothing reads."""
    assert not torch.equal(take_steps(backend)[0], take_steps(backend, shard=shard)[0])


@on_each
def test_a_shard_declared_between_two_steps_counts(backend):
    """Guard against a fast path that keeps the position of before."""
    param, optimizer = take_steps(backend)
    other, unchanged = take_steps(backend)
    optimizer.shard(param, index=3, offset=640, numel=2 * NUMEL)
    for one, own in ((param, optimizer), (other, unchanged)):
        one.grad = torch.ones_like(one)
        own.step()
    assert not torch.equal(param, other)


@on_each
def test_a_loaded_checkpoint_keeps_the_shards(backend):
    shard = {"index": 2, "offset": 128, "numel": 2 * NUMEL}
    param, optimizer = take_steps(backend, shard=shard)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert_same_bits("param", param, take_steps(backend, steps=2, shard=shard)[0])


@on_each
def test_states_alone_have_noise_of_each_step(backend):
    """Guard against a step count that is kept for stochastic weights only."""
    (param,) = parameters([torch.zeros(NUMEL, dtype=BF16)])
    optimizer = SGD([param], lr=0.0, momentum=0.5, states="bf16", backend=backend)
    buffers = []
    for _ in range(3):
        param.grad = torch.full_like(param, 1.0)
        optimizer.step()
        buffer = optimizer.state[param]["momentum_buffer"]
        buffers.append(buffer.clone())
        buffer.fill_(1.0 + 2.0**-7)  # half of it plus 1 has one bit more than bf16
    assert len(buffers[1].unique()) == 2
    assert not torch.equal(buffers[1], buffers[2])


@on_each
def test_parameters_have_noise_of_their_own(backend):
    """Guard against one noise for all parameters."""
    params = parameters([torch.ones(NUMEL, dtype=BF16)] * 2)
    optimizer = AdamW(params, lr=1e-3, weights="stochastic", backend=backend)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert not torch.equal(*params)


@on_each
def test_weight_and_state_have_noise_of_their_own(backend):
    """Guard against one noise for all values of a row: here both round the same magnitude."""
    (param,) = parameters([torch.zeros(NUMEL, dtype=BF16)])
    options = {"lr": 1.0, "momentum": 0.5, "weights": "stochastic", "states": "bf16"}
    optimizer = SGD([param], backend=backend, **options)
    for step in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
        buffer = optimizer.state[param]["momentum_buffer"]
        if step == 0:
            param.detach().zero_()
            buffer.fill_(1.0 + 2.0**-7)  # half of it plus 1 has one bit more than bf16
    assert len(buffer.unique()) == len(param.unique()) == 2
    assert not torch.equal(param, -buffer)


@on_each
def test_rounding_is_unbiased(backend):
    """Guard against noise that is not uniform: the mean of many elements is the exact value."""
    param, _ = take_steps(backend, weight_decay=0.0)
    share = (param != 1).float().mean().item()
    # the update is lr of an ulp of 2**-8 below 1
    assert share == pytest.approx(1e-3 * 2**8, abs=4 * (0.25 / NUMEL) ** 0.5)


@pytest.mark.parametrize("states", ["bf16", "int8", "fp8"])
def test_a_conversion_has_new_noise_for_each_part(states):
    """Guard against noise that repeats after each part of 2**20 elements."""
    codec = STATES[states].signed
    value = torch.full((2 * conversion.PIECE,), 1.0 + 2.0**-9)
    value[::64] = 1.5  # the same scale everywhere
    stored = conversion.decode(codec, conversion.encode(codec, value, value), torch.float32)
    first, second = stored.chunk(2)
    assert not torch.equal(first, second)
