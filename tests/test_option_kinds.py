"""Types of numbers among the options, each read at every step.

Faults tried by hand: the bound on the norm not made one object again after a checkpoint was loaded.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values

from fused_optim import AdamW

SHAPES = [(40,), (3, 7)]
# before and after a change in place
NUMBERS = {
    "lr": (0.1, 0.02),
    "eps": (1e-8, 0.5),
    "weight_decay": (0.0, 0.3),
    "max_grad_norm": (4.0, 0.25),
    "max_grad_value": (1.0, 0.01),
    "l1": (0.0, 0.4),
    "ema_decay": (0.5, 0.9),
    "seed": (3, 4),
}
KINDS = {
    "tensor": torch.tensor,
    "tensor of shape (1,)": lambda value: torch.tensor([value]),
    "array": np.array,
    "array of shape (1,)": lambda value: np.array([value]),
}


def snapshot(params, optimizer):
    """Return copies of the parameters, and the averages."""
    return [*(p.detach().clone() for p in params), *optimizer.ema_parameters()]


def run(make, change, name, backend, extra):
    """Take four steps, change the option after the second, and return the values after the last."""
    params = parameters(values(SHAPES, torch.bfloat16))
    options = {"ema_decay": 0.5, "lr": 0.1, "weights": "stochastic", **extra}
    optimizer = AdamW(params, backend=backend, **{**options, name: make(NUMBERS[name][0])})
    for step in range(4):
        if step == 2:
            change(optimizer, name)
        set_grads(params, values(SHAPES, torch.bfloat16, step))
        optimizer.step()
    return snapshot(params, optimizer)


def set_to(optimizer, name):
    """Replace the option by another object."""
    new = NUMBERS[name][1]
    if name == "max_grad_norm":
        optimizer.max_grad_norm = new
    else:
        optimizer.param_groups[0][name] = new


def set_in_place(optimizer, name):
    """Change the value of the option's tensor or array."""
    value = optimizer.param_groups[0][name]
    value[...] = NUMBERS[name][1]


@pytest.mark.parametrize("extra", [{}, {"betas": (0.9, torch.tensor(0.99))}], ids=["", "tensor"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_change_in_place_is_seen(backend, name, kind, extra):
    """Guard against options read once, with another option that is a tensor and without."""

    def make(value):
        # float64, so that the number is the same
        made = KINDS[kind](value)
        return made if name == "seed" else made.astype(float) if "array" in kind else made.double()

    result = run(make, set_in_place, name, backend, extra)
    expected = run(lambda value: value, set_to, name, backend, extra)
    still = run(lambda value: value, lambda *_: None, name, backend, extra)
    assert all(map(torch.equal, result, expected))
    assert not all(map(torch.equal, result, still)), "the change makes no difference"


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.float16])
def test_numpy_scalars_are_numbers(kind):
    runs = []
    for make in (kind, lambda value: float(kind(value))):
        params = parameters(values(SHAPES, torch.float32))
        optimizer = AdamW(
            params, lr=make(1), max_grad_norm=make(2), l1=make(1), backend="reference"
        )
        set_grads(params, values(SHAPES, torch.float32, 1))
        optimizer.step()
        runs.append(snapshot(params, optimizer))
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("seed", [np.int64(5), np.array(5), torch.tensor(5), np.uint8(5)])
def test_whole_numbers_of_every_kind_are_seeds(seed):
    runs = []
    for given in (seed, 5, 6):
        params = parameters(values(SHAPES, torch.bfloat16))
        optimizer = AdamW(params, weights="stochastic", seed=given, backend="reference")
        set_grads(params, values(SHAPES, torch.bfloat16, 1))
        optimizer.step()
        runs.append(torch.cat([p.detach().flatten() for p in params]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": np.array([1.0, 2.0])}, r"lr must have one element, got shape \(2,\)"),
        ({"max_grad_norm": np.zeros((2, 2))}, r"max_grad_norm must have one element, got shape"),
        ({"max_grad_norm": torch.zeros(0)}, r"max_grad_norm must have one element, got shape \(0,"),
        ({"l1": np.array("a")}, "l1 must be a number, got"),
        ({"seed": np.float64(5)}, "seed must be a whole number"),
        ({"seed": torch.tensor(5.0)}, "seed must be a whole number"),
        ({"seed": torch.tensor([5, 6])}, "seed must have one element"),
    ],
)
def test_what_is_no_number_is_refused_by_name(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AdamW(parameters(values([3], torch.bfloat16)), **options)


# ---- the bound on the norm is one for all groups, and travels


def clipped(bound, groups=2, **options):
    params = parameters(values([(4,)] * groups, torch.float32))
    parts = [{"params": [p]} for p in params]
    return params, AdamW(parts, lr=0.1, max_grad_norm=bound, backend="reference", **options)


def test_the_bound_travels_with_a_checkpoint():
    params, optimizer = clipped(0.5)
    set_grads(params, [torch.ones(4)] * 2)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    others, resumed = clipped(None)
    resumed.load_state_dict(saved)
    assert resumed.max_grad_norm == 0.5
    set_grads(others, [torch.ones(4)] * 2)
    resumed.step()
    assert resumed.clip_factor == optimizer.clip_factor != 1
    resumed.add_param_group({"params": parameters(values([(2,)], torch.float32))})
    assert resumed.param_groups[-1]["max_grad_norm"] == 0.5
    for copied in (copy.deepcopy(resumed), pickle.loads(pickle.dumps(resumed))):
        assert copied.max_grad_norm == 0.5


def test_a_checkpoint_without_a_bound_leaves_it():
    """Guard against a bound removed by checkpoints of torch, older ones, or without clipping."""
    params, plain = clipped(None)
    before = copy.deepcopy(plain.state_dict())
    for group in before["param_groups"]:
        assert "max_grad_norm" not in group
    torch_optimizer = torch.optim.AdamW([{"params": [p]} for p in params])
    for saved in (before, torch_optimizer.state_dict(), plain.state_dict()):
        _, optimizer = clipped(0.5)
        optimizer.load_state_dict(saved)
        assert optimizer.max_grad_norm == 0.5
        assert [group["max_grad_norm"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_torch_loads_a_checkpoint_with_a_bound():
    params, optimizer = clipped(0.5)
    set_grads(params, [torch.ones(4)] * 2)
    optimizer.step()
    torch_optimizer = torch.optim.AdamW([{"params": [p]} for p in params])
    torch_optimizer.load_state_dict(optimizer.state_dict())
    torch_optimizer.step()
    assert "max_grad_norm" not in optimizer.state_dict(format="torch")["param_groups"][0]


def test_a_loaded_tensor_is_one_for_all_groups():
    _, optimizer = clipped(torch.tensor(0.5))
    params, resumed = clipped(None)
    saved = copy.deepcopy(optimizer.state_dict())
    # as from a file that has each entry by itself
    saved["param_groups"][1]["max_grad_norm"] = torch.tensor(0.5)
    resumed.load_state_dict(saved)
    resumed.max_grad_norm.fill_(0.25)
    set_grads(params, [torch.ones(4)] * 2)
    resumed.step()
    assert resumed.clip_factor == pytest.approx(0.25 / 8**0.5)


def test_groups_that_disagree_about_the_bound_are_refused():
    """Guard against a bound of one group that is ignored."""
    for index in (0, 1):
        for steps in (0, 2):
            params, optimizer = clipped(0.5)
            set_grads(params, [torch.ones(4)] * 2)
            for _ in range(steps):
                optimizer.step()
            before = [p.detach().clone() for p in params]
            optimizer.param_groups[index]["max_grad_norm"] = 2.0
            with pytest.raises(ValueError, match="max_grad_norm is one bound"):
                optimizer.step()
            assert all(map(torch.equal, params, before))
    params, optimizer = clipped(0.5, groups=1)
    optimizer.param_groups[0]["max_grad_norm"] = 2.0
    assert optimizer.max_grad_norm == 2.0
