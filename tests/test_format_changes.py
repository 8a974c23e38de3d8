"""Checkpoints of storage formats, changes of format, refusals and warnings."""

import copy
import warnings

import pytest
import torch
from helpers.format_runs import WITH_EXTRA_KEYS, random_grads, trained, weight
from helpers.models import BACKENDS, parameters, set_grads, values
from torch.nn import Parameter

import fused_optim
from fused_optim import AdamW
from fused_optim.formats import codecs, conversion
from fused_optim.formats.registry import STATES, WEIGHTS, formats_for
from fused_optim.options import get_option
from fused_optim.testing.closeness import assert_same_bits

BF16 = torch.bfloat16


# ---- checkpoints


EVERY = [(w, s) for w in WEIGHTS for s in STATES]


@pytest.mark.parametrize(("weights", "states"), EVERY)
def test_a_checkpoint_comes_back_exactly(weights, states):
    start, grads = values([5000, 3], BF16), random_grads([5000, 3], 4)
    options = {"lr": 1e-2, "weights": weights, "states": states, "ema_decay": 0.9}
    options["backend"] = "reference"
    params, optimizer = trained(start, grads[:2], options)
    saved = copy.deepcopy(optimizer.state_dict())
    others = parameters([p.detach() for p in params])
    resumed = AdamW(others, **options)
    resumed.load_state_dict(saved)
    assert_same_state(resumed.state_dict(), saved)
    for given in grads[2:]:
        for copied, ps in ((optimizer, params), (resumed, others)):
            set_grads(ps, given)
            copied.step()
    assert_same_state(resumed.state_dict(), optimizer.state_dict())
    for ours, theirs in zip(others, params, strict=True):
        assert_same_bits("param", ours.detach(), theirs.detach())


@pytest.mark.parametrize(("weights", "states"), EVERY)
@pytest.mark.parametrize("source", [("plain", "param"), ("plain", "int8"), ("split", "fp32")])
def test_live_optimizers_share_all_of_a_state_or_nothing(source, weights, states):
    """Guard against two optimizers that share a part of a state after loading.

    In torch's formats they share all, as in torch; else each goes on as if it were alone.
    """
    start, grads = values([5000, 3], BF16), random_grads([5000, 3], 4)
    options = {"lr": 1e-2, "backend": "reference", "ema_decay": 0.9}
    params, first = trained(start, grads[:2], options, weights=source[0], states=source[1])
    alone = copy.deepcopy(first.state_dict())
    seconds = []
    for saved in (first.state_dict(), alone):
        others = parameters([p.detach() for p in params])
        second = AdamW(others, **options, weights=weights, states=states)
        second.load_state_dict(saved)
        seconds.append((others, second))
    plain = source == (weights, states) == ("plain", "param")
    for index, param in enumerate(params):
        loaded = seconds[0][1].state[seconds[0][0][index]]
        shared = {loaded[name] is value for name, value in first.state[param].items()}
        assert shared == {plain}
    if plain:
        return
    for given in grads[2:]:
        for ps, optimizer in ((params, first), *seconds):
            set_grads(ps, given)
            optimizer.step()
    assert {state["step"].item() for state in first.state.values()} == {4}
    assert_same_state(seconds[0][1].state_dict(), seconds[1][1].state_dict())


def assert_same_state(ours, theirs):
    """Check that two checkpoints have the same bits."""
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in ours["state"].items():
        assert state.keys() == theirs["state"][index].keys()
        for name, value in state.items():
            other = theirs["state"][index][name]
            assert (value.dtype, value.shape) == (other.dtype, other.shape), name
            assert torch.equal(
                value.contiguous().view(-1).view(torch.uint8),
                other.contiguous().view(-1).view(torch.uint8),
            ), name


LOSSLESS = [("master", "fp32"), ("split", "fp32")]


@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("source", LOSSLESS)
def test_a_run_can_change_its_format(source, target):
    """Guard against losses by a change of format through either checkpoint."""
    start, grads = values([5000], BF16), random_grads([5000], 3)
    options = {"lr": 1e-2, "backend": "reference"}
    params, optimizer = trained(start, grads, options, weights=source[0], states=source[1])
    exact = weight(optimizer, params[0]), optimizer.state[params[0]]["exp_avg"].clone()
    for form in ("own", "torch"):
        saved = copy.deepcopy(optimizer.state_dict(format=form))
        others = parameters([p.detach() for p in params])
        resumed = AdamW(others, weights=target[0], states=target[1], **options)
        resumed.load_state_dict(saved)
        group = resumed.param_groups[0]
        assert (get_option(group, "weights"), get_option(group, "states")) == target
        others[0].grad = torch.zeros_like(others[0])
        resumed._engine.prepare_rows(resumed)
        state = resumed.state[others[0]]
        expected = {*formats_of(resumed, others[0])[2].column_keys("exp_avg")}
        assert expected <= state.keys()
        result = weight(resumed, others[0])
        moment = conversion.decode(
            formats_of(resumed, others[0])[2],
            [state[n] for n in formats_of(resumed, others[0])[2].column_keys("exp_avg")],
            torch.float32,
        )
        if target[0] in ("master", "split"):
            assert_same_bits("weight", result, exact[0])
        else:
            assert torch.allclose(result, exact[0], rtol=2**-7, atol=0)
        if target[1] == "fp32":
            assert_same_bits("exp_avg", moment, exact[1])
        else:
            assert (moment - exact[1]).abs().max() <= 0.13 * exact[1].abs().max()


def formats_of(optimizer, param):
    """Return the formats of a parameter's weight and states."""
    group = optimizer.param_groups[0]
    weights, states = get_option(group, "weights"), get_option(group, "states")
    return formats_for(optimizer.rule(group), param.dtype, False, weights, states)


def test_to_torch_and_back():
    """Guard against a ``format="torch"`` that torch.optim cannot load, or that is lossy."""
    start, grads = values([5000], BF16), random_grads([5000], 3)
    params, optimizer = trained(start, grads, {"weights": "split", "states": "int8", "lr": 1e-2})
    wide = [Parameter(weight(optimizer, params[0]))]
    torch_optimizer = torch.optim.AdamW(wide)
    packed = optimizer.state_dict(format="torch")
    assert packed["state"][0]["exp_avg"].dtype is torch.float32
    assert packed["state"][0]["master"].dtype is torch.float32
    assert "exp_avg_scale" not in packed["state"][0]
    assert not fused_optim.options.GROUP_DEFAULTS.keys() & packed["param_groups"][0].keys()
    torch_optimizer.load_state_dict(packed)
    wide[0].grad = grads[0][0].float()
    torch_optimizer.step()
    back = AdamW(parameters([wide[0].to(BF16)]), weights="split", states="int8")
    back.load_state_dict(torch_optimizer.state_dict())
    param = back.param_groups[0]["params"][0]
    param.grad = torch.zeros_like(param)
    back.step()
    assert back.state[param]["exp_avg"].dtype is torch.int8
    assert back.state[param]["step"] == 5


def test_a_float32_run_takes_up_a_bf16_run():
    """Guard against lost extra bits: parameter and remainder become the float32 parameter."""
    start, grads = values([5000], BF16), random_grads([5000], 3)
    params, optimizer = trained(start, grads, {"weights": "split", "states": "fp32", "lr": 1e-2})
    exact = weight(optimizer, params[0])
    wide = [Parameter(params[0].detach().float())]
    resumed = AdamW(wide, lr=0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.param_groups[0]["lr"] = 0.0
    wide[0].grad = torch.zeros_like(wide[0])
    resumed.step()
    assert_same_bits("param", wide[0].detach(), exact)
    assert "remainder" not in resumed.state[wide[0]]


@pytest.mark.parametrize("name", WITH_EXTRA_KEYS)
def test_what_was_written_before_the_change_is_the_weight(name):
    """Guard against extra bits of an older value beside a parameter that was made wide."""
    start, grads = values([5000], BF16), random_grads([5000], 3)
    params, optimizer = trained(start, grads, {"weights": name, "states": "fp32", "lr": 1e-2})
    expected = weight(optimizer, params[0])
    wide = Parameter(params[0].detach().float())
    (new,) = values([5000], torch.float32, 9)
    wide.data[::3] = expected[::3] = new[::3]
    resumed = AdamW([wide], backend="reference")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.param_groups[0]["lr"] = 0.0
    wide.grad = torch.zeros_like(wide)
    resumed.step()
    assert_same_bits("param", wide.detach(), expected)


def test_an_optimizer_without_states_takes_up_a_weight_too():
    start, grads = values([50], BF16), random_grads([50], 3)
    params, optimizer = trained(start, grads, {"weights": "split", "lr": 1e-3}, fused_optim.SGD)
    wide = [Parameter(params[0].detach().float())]
    resumed = fused_optim.SGD(wide, lr=0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.param_groups[0]["lr"] = 0.0
    wide[0].grad = torch.zeros_like(wide[0])
    resumed.step()
    assert_same_bits("param", wide[0].detach(), weight(optimizer, params[0]))


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64], ids=str)
def test_averages_and_z_are_as_wide_as_the_parameter(dtype):
    """Guard against an average or z that is narrower than the parameter, and stalls."""
    options = {"states": "int8", "ema_decay": 0.9}
    start, grads = values([5000], dtype), random_grads([5000], 1, dtype)
    params, optimizer = trained(start, grads, options, fused_optim.ScheduleFreeAdamW)
    for name in ("z", "ema"):
        wide = torch.promote_types(dtype, torch.float32)
        assert optimizer.state[params[0]][name].dtype is wide


def test_channels_last_codes_follow_their_layout():
    """Guard against codes loaded into another layout, which needs other scales."""
    start = values([(4, 64, 8, 8)], BF16)[0]
    params = [Parameter(start.to(memory_format=torch.channels_last))]
    optimizer = AdamW(params, states="int8", lr=1e-2, backend="reference")
    params[0].grad = values([start.shape], BF16, 3)[0]
    params[0].grad[:, ::2] *= 2.0**-20
    optimizer.step()
    before = optimizer.state_dict(format="torch")["state"][0]["exp_avg"]
    assert_close_to_gradient(before, params[0].grad)
    others = [Parameter(params[0].detach().contiguous())]
    resumed = AdamW(others, states="int8", backend="reference")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    others[0].grad = torch.zeros_like(others[0])
    resumed.step()
    after = resumed.state_dict(format="torch")["state"][0]["exp_avg"]
    assert_close_to_gradient(after / 0.9, params[0].grad)


def assert_close_to_gradient(exp_avg, grad):
    assert exp_avg.shape == grad.shape
    assert (exp_avg - 0.1 * grad.float()).abs().max() < 0.15 * 0.1 * grad.abs().max()


# ---- refusals, warnings and counts


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.float16, {"weights": "split"}, "must be torch.bfloat16 for weights='split'"),
        (torch.float16, {"weights": "stochastic"}, "must be torch.bfloat16"),
        (torch.complex64, {"states": "int8"}, "states='param' for torch.complex64"),
        (BF16, {"weights": "half"}, "weights must be one of 'plain', 'master'"),
        (BF16, {"states": "int4"}, "states must be one of 'param'"),
        (BF16, {"seed": -1}, r"seed must be a whole number in \[0, 2\*\*53\), got -1"),
        (BF16, {"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_what_cannot_be_had_is_refused(dtype, options, message):
    with pytest.raises(ValueError, match=message):
        AdamW([Parameter(torch.zeros(3, dtype=dtype))], **options)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_float32_parameter_is_plain(name):
    params, optimizer = trained(
        values([50], torch.float32), random_grads([50], 2, torch.float32), {"weights": name}
    )
    exact, _ = trained(values([50], torch.float32), random_grads([50], 2, torch.float32), {})
    assert_same_bits("param", params[0].detach(), exact[0].detach())
    assert optimizer.state[params[0]].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_formats_are_options_of_a_group():
    params = parameters(values([5000, 5000], BF16))
    groups = [{"params": params[:1], "states": "int8"}, {"params": params[1:], "weights": "split"}]
    optimizer = AdamW(groups)
    set_grads(params, values([5000, 5000], BF16, 1))
    optimizer.step()
    assert optimizer.state[params[0]]["exp_avg"].dtype is torch.int8
    assert optimizer.state[params[1]]["remainder"].dtype is torch.int16


@pytest.mark.filterwarnings("error")
def test_a_square_that_cannot_decay_is_warned_of():
    params = parameters(values([3], BF16))
    with pytest.warns(
        UserWarning, match="exp_avg_sq is kept in torch.bfloat16 and cannot decay: beta2"
    ):
        AdamW(params)
    AdamW(params, betas=(0.9, 0.99))
    AdamW(params, states="bf16")
    AdamW(parameters(values([3], torch.float32)))


def test_stalling_is_counted_and_warned_of_once():
    start = [torch.ones(100, dtype=BF16), torch.zeros(60, dtype=BF16)]
    params = parameters(start)
    optimizer = fused_optim.SGD(params, lr=1e-4, count_stalled=True)
    assert optimizer.stalled is None
    set_grads(params, [torch.ones(100), torch.ones(60)])
    with pytest.warns(UserWarning, match="62% of the elements did not move"):
        optimizer.step()
    assert optimizer.stalled == 100 / 160
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    quiet = fused_optim.SGD(params, lr=1e-4)
    quiet.step()
    assert quiet.stalled is None


# float32 parameters are plain in every format
WEIGHTS_AND_DTYPES = [
    (name, dtype)
    for name, (_, dtypes) in WEIGHTS.items()
    for dtype in (BF16, torch.float16, torch.float32)
    if dtype in dtypes or dtype is torch.float32
]


@pytest.mark.interpreted
@pytest.mark.parametrize(("name", "dtype"), WEIGHTS_AND_DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_stalled_is_the_share_of_unchanged_weights(backend, name, dtype):
    """Guard against a count that leaves out the extra bits of a format."""
    params = parameters(values([3000, 70], dtype))
    optimizer = fused_optim.SGD(params, 1e-5, weights=name, count_stalled=True, backend=backend)
    shares = []
    for step in range(3):
        before = [weight(optimizer, p) for p in params]
        set_grads(params, [torch.rand(3000) + 1, torch.rand(70) + 1])
        optimizer.param_groups[0]["lr"] = 1e-6 if step else 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        after = [weight(optimizer, p) for p in params]
        stays = sum((a == b).sum().item() for a, b in zip(after, before, strict=True))
        assert optimizer.stalled == stays / 3070
        shares.append(stays / 3070)
    exact = (name, dtype) == ("kahan", torch.float16) or name in ("master", "split")
    exact = exact or dtype is torch.float32
    assert (max(shares) == 0) if exact else (max(shares) > 0.01)


def test_stochastic_rounding_is_counted_and_not_warned_of():
    for name in ("stochastic", "split24"):
        params = parameters([torch.ones(4096, dtype=BF16)])
        optimizer = fused_optim.SGD(
            params, lr=1e-7, weights=name, count_stalled=True, backend="reference"
        )
        set_grads(params, [torch.ones(4096)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        assert optimizer.stalled > 0.5


def test_swapping_the_average_loses_nothing():
    """Guard against extra bits lost by ``swap_ema``."""
    for name in WEIGHTS:
        options = {"weights": name, "ema_decay": 0.5, "lr": 0.1, "backend": "reference"}
        params, optimizer = trained(values([5000], BF16), random_grads([5000], 2), options)
        copied = copy.deepcopy(optimizer)
        before = weight(optimizer, params[0])
        average = next(iter(optimizer.ema_parameters())).clone()
        assert not torch.equal(average.to(BF16), params[0]), "a swap of equal values shows nothing"
        with optimizer.swap_ema():
            assert_same_bits("average", params[0].detach(), average.to(BF16))
        assert_same_bits("weight", weight(optimizer, params[0]), before)
        set_grads(params, random_grads([5000], 1)[0])
        optimizer.step()
        other = copied.param_groups[0]["params"]
        set_grads(other, random_grads([5000], 1)[0])
        copied.step()
        assert_same_bits("after", weight(optimizer, params[0]), weight(copied, other[0]))


def test_codes_and_scales_agree_with_their_constants():
    for small, dtype in ((codecs.E4M3, torch.float8_e4m3fn), (codecs.E5M2, torch.float8_e5m2)):
        info = torch.finfo(dtype)
        code = torch.tensor([small.max_code], dtype=torch.uint8).view(dtype).float().item()
        assert code == info.max
