"""Parameters written outside a step, in formats that store more of a weight than the parameter.

What is guaranteed is written in docs/formats.md. Faults tried by hand: none dropped on request; a
remainder that counts beside a zero; twice the bound of kahan's compensation.
"""

import copy
import functools
import math

import pytest
import torch
from helpers.format_runs import WITH_EXTRA_KEYS, random_grads, train_shards, trained, weight
from helpers.models import BACKENDS, parameters, set_grads, values
from torch import nn

from fused_optim import SGD, AdamW, ScheduleFreeAdamW
from fused_optim.formats import conversion
from fused_optim.formats.registry import WEIGHTS
from fused_optim.testing.closeness import assert_same_bits

BF16 = torch.bfloat16
each = pytest.mark.parametrize("name", WITH_EXTRA_KEYS)
on_each = pytest.mark.parametrize("backend", BACKENDS)


# ---- writes that change no value


def clamped(param, optimizer):
    """Clamp to bounds that no element reaches."""
    param.clamp_(-5, 5)


def perturbed(param, optimizer):
    """Move away and back, as SAM does."""
    bound = param.clone()
    param.add_(0.125)
    param.copy_(bound)


def constrained(param, optimizer):
    """Bound one row, and write the others as they are."""
    param.copy_(torch.cat([param[:1].clamp(max=1.0), param[1:]]))


def saved_and_loaded(param, optimizer):
    """Load a checkpoint of the model and the optimizer."""
    model, packed = param.clone(), copy.deepcopy(optimizer.state_dict())
    param.copy_(torch.randn(param.shape))
    optimizer.load_state_dict(packed)
    param.copy_(model)


STEPS = 80  # of 2e-4, each below half an ulp of bf16; together four ulps


def stepped_and_written(name, backend, edit=None):
    """Return weight and parameter after steps, with a write by ``edit`` after each."""
    params = parameters([torch.ones(64, 64, dtype=BF16)])
    options = {"weights": name, "states": "fp32", "weight_decay": 0, "backend": backend}
    optimizer = AdamW(params, lr=2e-4, **options)
    for _ in range(STEPS):
        set_grads(params, [torch.ones(64, 64)])
        optimizer.step()
        if edit is not None:
            with torch.no_grad():
                edit(params[0], optimizer)
    return weight(optimizer, params[0]), params[0].detach().clone()


unwritten = functools.cache(stepped_and_written)  # the same beside every edit


@on_each
@pytest.mark.parametrize("edit", [clamped, perturbed, constrained, saved_and_loaded])
@each
def test_small_steps_add_up_between_writes(name, edit, backend):
    """Guard against lost extra bits."""
    result = stepped_and_written(name, backend, edit)
    for ours, theirs, what in zip(
        result, unwritten(name, backend), ("weight", "parameter"), strict=True
    ):
        assert_same_bits(what, ours, theirs)
    assert (1.0 - result[0].mean()) == pytest.approx(STEPS * 2e-4, rel=0.02)


@on_each
def test_an_edit_costs_no_full_step(backend, monkeypatch):
    """Guard against a write that ends the cached step."""
    params = parameters(values([(40,), (70,)], BF16))
    optimizer = AdamW(params, weights="split", backend=backend)
    for step in range(4):
        set_grads(params, values([(40,), (70,)], BF16, step))
        optimizer.step()
        with torch.no_grad():
            params[0].mul_(0.5)
        if step == 0:
            monkeypatch.setattr(
                optimizer._engine, "_full_step", lambda *_: pytest.fail("a full step")
            )


def test_shards_keep_what_the_whole_keeps():
    start, grads = values([20_000], BF16)[0], random_grads([20_000], 3)
    options = {"weights": "split24", "states": "fp32", "lr": 1e-4, "backend": "reference"}
    weights = []
    for cuts in ([0, 20_000], [0, 6400, 20_000]):
        shards = train_shards(start, grads, cuts, options, edit=lambda p: p.clamp_(-1, 1))
        weights.append(torch.cat([weight(optimizer, param) for param, optimizer in shards]))
    assert_same_bits("weight", *weights)


@each
def test_two_optimizers_that_share_a_parameter_both_learn(name):
    """Guard against a master that ignores what another optimizer writes."""
    params = parameters([torch.ones(4096, dtype=BF16)])
    options = {"lr": 2e-4, "weights": name, "backend": "reference"}
    first, second = SGD(params, **options), SGD(params, **options)
    for _ in range(100):
        for optimizer in (first, second):
            set_grads(params, [torch.ones(4096)])
            optimizer.step()
    # a master that the other's write does not fit is dropped for it; a remainder stays
    moved = 1.0 - params[0].detach().float().mean()
    assert moved == pytest.approx(0.04, abs=0.008 if name != "master" else 0.02)


# ---- writes of other values


@pytest.mark.interpreted
@on_each
@each
def test_the_step_goes_on_from_what_was_written(name, backend):
    """Guard against stale extra bits of half an ulp or more, or any beside a zero."""
    start, grads = values([5000], BF16), random_grads([5000], 3)
    options = {"lr": 1e-3, "weights": name, "states": "fp32", "backend": backend}
    params, optimizer = trained(start, grads[:2], options)
    new = 2.0 ** torch.linspace(-20, 20, 5000)
    new = (new * values([5000], torch.float32, seed=7)[0].sign()).to(BF16)
    new[::5], new[1::5], new[2::50] = 0.0, -0.0, math.inf
    with torch.no_grad():
        params[0].copy_(new)
    set_grads(params, grads[2])
    optimizer._engine.prepare_rows(optimizer)
    assert_same_bits("parameter", params[0].detach(), new)
    result = weight(optimizer, params[0])
    zero, finite = new == 0, new.isfinite()
    assert_same_bits("zeros", result[zero], new[zero].float())
    assert not result.isnan().any()
    power = torch.frexp(new.float()).exponent - 1
    half = torch.ldexp(torch.ones_like(result), power - 8)
    assert ((result - new.float()).abs() <= half)[finite & ~zero].all()
    optimizer.step()
    assert (weight(optimizer, params[0]) - result)[finite].abs().max() < 2e-3 + 2.0**21 * 2e-5


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_a_stale_compensation_is_at_most_half_an_ulp(dtype):
    """Guard against a larger bound, for every 16-bit parameter."""
    codec = WEIGHTS["kahan"].codec
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    param = bits.view(dtype)
    below = (bits - 1).view(dtype).float()
    for size in (2.0**-30, 2.0**-12, 2.0**-8, 1.0):
        lost = torch.full_like(param, size)
        result = conversion.decode(codec, [param, lost], torch.float32)
        number = param.isfinite() & below.isfinite() & (param > 0)
        ulp = (param.float() - below)[number]  # of the lower side, where it may be half as long
        assert ((result - param.float())[number] <= ulp).all()
        assert_same_bits("zero", result[param == 0], param[param == 0].float())


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_kahan_keeps_its_own_compensation(dtype):
    """Guard against a compensation that the codec stores and then rejects."""
    codec = WEIGHTS["kahan"].codec
    # below this value the compensation underflows in the same dtype
    least = -37 if dtype is BF16 else -8
    value = torch.logspace(least, 38, 200_000, base=10.0)
    value = value[value < torch.finfo(dtype).max]
    tensors = conversion.encode(codec, value, value.to(dtype))
    result = conversion.decode(codec, tensors, torch.float32)
    param, lost = (tensor.float() for tensor in tensors)
    assert_same_bits("sum", result[param != 0], (param + lost)[param != 0])


MASKED = {
    "weights that were trained": lambda param, mask: param.mul_(mask),
    "through .data": lambda param, mask: param.data.mul_(mask),
    "negative zeros": lambda param, mask: param.copy_(torch.where(mask == 0, -0.0, param)),
}


# the ways differ in what the host does, so one of them is interpreted
INTERPRETED = pytest.param("negative zeros", marks=pytest.mark.interpreted)


@on_each
@pytest.mark.parametrize("write", ["weights that were trained", "through .data", INTERPRETED])
@each
def test_a_masked_weight_stays_zero(name, write, backend):
    """Guard against masked weights that move, under a rule with a step of either sign (L1)."""
    params = parameters(values([4096], BF16))
    mask = (torch.arange(4096) % 3 != 0).to(BF16)
    options = {"lr": 1e-3, "weights": name, "backend": backend}
    optimizer = SGD(params, l1=1.0, **options)
    for step in range(6):
        grads = values([4096], BF16, step)
        set_grads(params, [grads[0] * mask if step >= 3 else grads[0]])
        optimizer.step()
        if step >= 3:
            assert not params[0][mask == 0].any() or step == 3
        if step >= 2:
            with torch.no_grad():
                MASKED[write](params[0], mask)
    assert not weight(optimizer, params[0])[mask == 0].any()
    assert (params[0][mask == 1] != 0).all()


# ---- on request


def moved_by_hand(name, **options):
    """Return parameters and optimizer after three steps."""
    params, optimizer = trained(
        values([5000, 50], BF16),
        random_grads([5000, 50], 3),
        {"weights": name, "lr": 1e-3},
        **options,
    )
    return params, optimizer


@each
def test_weights_replaced_starts_at_the_parameter(name):
    params, optimizer = moved_by_hand(name)
    before = [weight(optimizer, p) for p in params]
    assert all((b != p).any() for b, p in zip(before, params, strict=True))
    addresses = [{n: t.data_ptr() for n, t in optimizer.state[p].items()} for p in params]
    optimizer.weights_replaced(iter(params[:1]))
    assert_same_bits("replaced", weight(optimizer, params[0]), params[0].detach().float())
    assert_same_bits("other", weight(optimizer, params[1]), before[1])
    optimizer.weights_replaced()
    assert_same_bits("all", weight(optimizer, params[1]), params[1].detach().float())
    assert addresses == [{n: t.data_ptr() for n, t in optimizer.state[p].items()} for p in params]
    with pytest.raises(KeyError, match="of this optimizer"):
        optimizer.weights_replaced([torch.zeros(3)])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_replaced_by_a_hook_of_the_model(name):
    """Guard against the hook of docs/formats.md without effect."""
    model = nn.Linear(70, 90, dtype=BF16)
    optimizer = AdamW(model.parameters(), weights=name, lr=1e-3, backend="reference")
    model.register_load_state_dict_post_hook(lambda *_: optimizer.weights_replaced())
    params = list(model.parameters())
    set_grads(params, values([p.shape for p in params], BF16, 1))
    optimizer.step()
    other = nn.Linear(70, 90, dtype=BF16)
    model.load_state_dict(other.state_dict())
    for param, expected in zip(params, other.parameters(), strict=True):
        assert_same_bits("weight", weight(optimizer, param), expected.detach().float())


def test_weights_replaced_within_swap_ema_leaves_the_average_in_place():
    params, optimizer = moved_by_hand("split", ema_decay=0.5)
    own = params[0].detach().clone()
    with optimizer.swap_ema():
        shown = params[0].detach().clone()
        optimizer.weights_replaced()
        assert_same_bits("shown", params[0].detach(), shown)
        assert_same_bits("weight", weight(optimizer, params[0]), own.float())
    assert_same_bits("own", params[0].detach(), own)


@each
def test_our_own_writes_keep_the_remainder(name):
    """Guard against extra bits lost by ``eval`` and ``train`` of schedule-free optimizers."""
    start, grads = values([5000], BF16), random_grads([5000], 4)
    options = {"weights": name, "lr": 1e-3}
    params, optimizer = trained(start, grads[:2], options, ScheduleFreeAdamW)
    before = weight(optimizer, params[0])
    optimizer.eval()
    optimizer.train()
    after = weight(optimizer, params[0])
    bound = {"split24": 2.0**-15, "kahan": 2.0**-15}.get(name, 2.0**-22)
    assert ((after - before).abs() <= bound * before.abs().clamp(min=1e-2) + 1e-9).all()
    assert (after != params[0]).any()
