"""A parameter more than once in one group, beside torch's for-loop, which updates it as often.

Guards: two rows with the same addresses in one launch, a second update that starts from the values
before the first, a fast path that updates once.
"""

import pytest
import torch
from helpers.models import BACKENDS, parameters, state_of, values
from torch import nn

import fused_optim
from fused_optim.testing.cases import CASES
from fused_optim.testing.closeness import assert_same_bits

pytestmark = [
    pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]
PEERS = [case for case in CASES if case.torch_class is not None and not case.additions]
each_case = pytest.mark.parametrize("case", PEERS, ids=lambda case: case.name)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
SHAPES = [(5,), (2, 3), (40, 30)]


def repeat(params):
    """Return the parameters in an order with one of them twice and another three times."""
    return [params[0], params[1], params[0], params[2], params[1], params[1]]


def make_pair(case, start, **additions):
    pair = parameters(start), parameters(start)
    options = {
        name: value.double() if isinstance(value, torch.Tensor) else value
        for name, value in case.options.items()
    }
    ours = case.fused(repeat(pair[0]), **options, **additions)
    return pair, (ours, case.torch_class(repeat(pair[1]), foreach=False, **options))


def compare(pair, optimizers):
    torch.testing.assert_close(*([p.detach() for p in params] for params in pair))
    for mine, other in zip(*pair, strict=True):
        expected = state_of(optimizers[1], other)
        found = state_of(optimizers[0], mine)
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            same = name in ("step", *optimizers[0].rule(optimizers[0].param_groups[0]).state_keys)
            torch.testing.assert_close(found[name], value, check_dtype=same)


@each_backend
@each_case
def test_each_occurrence_is_an_update(case, backend):
    pair, optimizers = make_pair(case, values(SHAPES, torch.float64), backend=backend)
    for seed in range(5):
        grads = values(SHAPES, torch.float64, seed)
        for params, optimizer in zip(pair, optimizers, strict=True):
            for i, param in enumerate(params):
                param.grad = None if (seed, i) == (2, 1) else grads[i].clone()
            optimizer.step()
        compare(pair, optimizers)


@each_case
def test_parameters_with_gaps(case):
    """A parameter that is updated in a copy: the second copy is made after the first update."""
    start = torch.arange(60.0, dtype=torch.float64).reshape(6, 10)
    results = []
    for cls, added in ((case.fused, {}), (case.torch_class, {"foreach": False})):
        options = {n: v for n, v in case.options.items() if not isinstance(v, torch.Tensor)}
        param = nn.Parameter(start.clone()[1::2, 2:7:2])
        optimizer = cls([param, param], **options, **added)
        for seed in range(3):
            (param.grad,) = values([param.shape], torch.float64, seed)
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@each_backend
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=str)
def test_sparse_gradients(options, backend):
    results = []
    for cls, added in (
        (fused_optim.SGD, {"backend": backend}),
        (torch.optim.SGD, {"foreach": False}),
    ):
        (param,) = parameters(values([(9, 4)], torch.float64))
        optimizer = cls([param, param], lr=0.1, **options, **added)
        for seed in range(3):
            (grad,) = values([(9, 4)], torch.float64, seed)
            param.grad = grad.index_fill(0, torch.tensor([0, 3, 8]), 0.0).to_sparse(1)
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("formats", [{"weights": "split", "states": "int8"}, {"weights": "master"}])
def test_backends_give_the_same_bits(formats):
    results = []
    for backend in BACKENDS:
        params = parameters(values([(80, 60), (7,)], torch.bfloat16))
        optimizer = fused_optim.SGD(
            [params[0], params[1], params[0]], lr=0.1, momentum=0.9, backend=backend, **formats
        )
        for seed in range(3):
            for param, grad in zip(
                params, values([(80, 60), (7,)], torch.bfloat16, seed), strict=True
            ):
                param.grad = grad
            optimizer.step()
        results.append([(param.detach(), optimizer.state[param]) for param in params])
    for (mine, states), (other, others) in zip(*results, strict=True):
        assert_same_bits("parameter", mine, other)
        for name, state in states.items():
            assert_same_bits(name, state, others[name])


@pytest.mark.parametrize("option", [{"max_grad_norm": 1.0}, {"nonfinite": "skip"}], ids=str)
def test_a_norm_of_duplicates_is_refused(option):
    """Until the option is changed; nothing has been changed by then."""
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = fused_optim.AdamW([param, param], **option)
    with pytest.raises(ValueError, match=r"duplicate parameters, .* max_grad_norm"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))
    assert not optimizer.state
    for group in optimizer.param_groups:
        group.update(max_grad_norm=None, nonfinite="propagate")
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_a_scaler_whose_work_the_step_does(found_inf):
    """Each pass unscales, and skips, by the tensors of the scaler."""
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.full((3,), 8.0)
    optimizer = fused_optim.SGD([param, param], lr=0.25, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([8.0]), torch.tensor([found_inf])
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 1.0 if found_inf else 0.5))
    assert optimizer.skipped == bool(found_inf)


def test_a_checkpoint():
    """Loading one with duplicates goes on as training does."""
    params = parameters(values([(5,)] * 2, torch.float64))
    params[1].data.copy_(params[0].data)
    optimizers = [fused_optim.Adam([param, param], lr=0.1) for param in params]

    def step(optimizer, param, seed):
        (param.grad,) = values([(5,)], torch.float64, seed)
        optimizer.step()

    for seed in range(2):
        step(optimizers[0], params[0], seed)
    params[1].data.copy_(params[0].data)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for optimizer, param in zip(optimizers, params, strict=True):
        optimizer.state[param] = {k: v.clone() for k, v in optimizer.state[param].items()}
        step(optimizer, param, 5)
    assert torch.equal(params[0], params[1])


def test_averages_are_exchanged_once():
    param = nn.Parameter(torch.ones(3))
    optimizer = fused_optim.SGD([param, param], lr=0.5, ema_decay=0.5)
    for _ in range(2):
        param.grad = torch.ones(3)
        optimizer.step()
    before = param.detach().clone()
    ((_, average),) = optimizer.ema_pairs()
    with optimizer.swap_ema():
        assert torch.equal(param, average)
    assert torch.equal(param, before)
    assert not torch.equal(before, average)
    param.grad = None
    expected = 0.5 * average + 0.5 * before
    optimizer.step()
    assert torch.equal(average, expected)


def test_schedule_free_modes():
    param = nn.Parameter(torch.ones(3))
    optimizer = fused_optim.ScheduleFreeSGD([param, param], lr=0.5)
    param.grad = torch.ones(3)
    optimizer.step()
    before = param.detach().clone()
    optimizer.eval()
    z = optimizer.state[param]["z"]
    torch.testing.assert_close(param.detach(), before + (1 - 1 / 0.9) * (z - before))
    optimizer.train()
    torch.testing.assert_close(param.detach(), before)
