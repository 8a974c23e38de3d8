"""Every sort of parameter that torch takes, updated in place and compared with torch's.

Faults guarded against: a copy updated and thrown away, elements paired by address, a version
counter left alone, a gradient used as scratch.
"""

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values
from helpers.torch_pair import Pair, each_case, each_class
from torch import nn

WIDE = torch.float64


def strided(make):
    """Return a parameter that is a view of ``make()``, and the whole tensor."""
    whole, view = make()
    return whole, nn.Parameter(view)


def sliced():
    whole = torch.arange(60.0, dtype=WIDE).reshape(6, 10)
    return whole, whole[1::2, 2:7:2]


def column():
    whole = torch.arange(12.0, dtype=WIDE).reshape(3, 4)
    return whole, whole[:, 1]


def transposed():
    whole = torch.arange(12.0, dtype=WIDE).reshape(3, 4)
    return whole, whole.t()


def channels_last():
    whole = torch.arange(48.0, dtype=WIDE).reshape(2, 2, 3, 4)
    return whole, whole.permute(0, 3, 1, 2)


def middle():
    whole = torch.arange(40.0, dtype=WIDE)
    return whole, whole[3:20]


def one_element_expanded():
    whole = torch.arange(3.0, dtype=WIDE)
    return whole, whole[1:2].expand(1, 1)


VIEWS = [sliced, column, transposed, channels_last, middle, one_element_expanded]


@pytest.mark.feature("layouts")
@pytest.mark.parametrize("make", VIEWS, ids=lambda m: m.__name__)
@each_class
def test_views(case, make):
    """Guard against writes to the neighbours of a view: the whole tensor is compared."""
    pair = Pair(case)
    wholes, pair.params = zip(*[strided(make) for _ in range(2)], strict=True)
    pair.params = [[param] for param in pair.params]
    pair.optimizers = (
        case.fused(pair.params[0], backend="reference"),
        case.torch_class(pair.params[1]),
    )
    start, pointer, strides = (
        wholes[0].clone(),
        pair.params[0][0].data_ptr(),
        [params[0].stride() for params in pair.params],
    )
    pair.step(3)
    torch.testing.assert_close(*wholes)
    assert pair.params[0][0].data_ptr() == pointer
    assert [params[0].stride() for params in pair.params] == strides
    outside = torch.ones_like(start, dtype=torch.bool)
    offset, param = pair.params[0][0].storage_offset(), pair.params[0][0]
    torch.as_strided(outside, param.shape, param.stride(), offset).fill_(False)
    assert torch.equal(wholes[0][outside], start[outside])
    assert not torch.equal(wholes[0], start)


@pytest.mark.feature("kinds of parameters")
@each_case
def test_scalar_empty_and_frozen(case):
    """Guard against faults with 0-dim, empty, frozen and at times gradient-less parameters."""
    pair = Pair(case, values([(), (0,), (3, 0, 2), (1,), (4,), (5,)], WIDE))
    for params in pair.params:
        params[4].requires_grad_(False)
    pair.step(1, only=[0, 1, 2, 3])
    pair.step(1, only=[0, 3, 5])
    pair.step(1, only=[])
    pair.step(1, only=[1, 2, 5])
    assert pair.params[0][4] not in pair.optimizers[0].state or case.fused.__name__ == "Adagrad"


@pytest.mark.feature("complex parameters")
@each_case
def test_complex(case):
    """Guard against other results than view_as_real gives, where torch uses it."""
    pair = Pair(case, values([(3, 2), (4,)], torch.complex128))
    for seed in range(3):
        for params in pair.params:
            grads = values([(3, 2), (4,)], torch.float64, seed)
            set_grads(params, [torch.complex(grad, grad.flip(0) + seed) for grad in grads])
        for optimizer in pair.optimizers:
            optimizer.step()
        pair.check()


@pytest.mark.feature("mixed dtypes")
@each_case
def test_dtypes_mixed_in_one_group(case):
    """Guard against rows of one dtype that change another's bits."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float64]
    options = {} if case.options.get("eps", 1) == 1 else {"eps": case.options["eps"]}
    start = [value.to(dtype) for value, dtype in zip(values([(9,)] * 5, WIDE), dtypes, strict=True)]
    mixed = Pair(case, start, **options)
    alone = [Pair(case, [tensor], **options) for tensor in start]
    for seed in range(3):
        grads = values([(9,)] * 5, WIDE, seed)
        for i, single in enumerate(alone):
            for params in (*mixed.params, *single.params):
                which = params[i] if len(params) > 1 else params[0]
                which.grad = grads[i].to(which.dtype)
            single.optimizers[0].step()
        for optimizer in mixed.optimizers:
            optimizer.step()
    for i, single in enumerate(alone):
        mine = mixed.params[0][i]
        assert mine.dtype == dtypes[i]
        assert torch.equal(mine, single.params[0][0])
        states = state_of(mixed.optimizers[0], mine)
        for name, value in state_of(single.optimizers[0], single.params[0][0]).items():
            assert torch.equal(states[name], value)
    exact = [mixed.params[j][i] for j in range(2) for i in (0, 1, 4)]
    torch.testing.assert_close(exact[:3], exact[3:])


@pytest.mark.feature("tied and shared")
@each_class
def test_tied_parameters(case):
    """Guard against two updates of one parameter that a model has under two names."""
    results = []
    for cls, added in ((case.fused, {"backend": "reference"}), (case.torch_class, {})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)).double()
        model[1].weight = model[0].weight
        optimizer = cls(model.parameters(), **added)
        assert len(optimizer.param_groups[0]["params"]) == 1
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(5)).square().mean().backward()
            optimizer.step()
        results.append(model[0].weight)
        assert model[1].weight is model[0].weight
    torch.testing.assert_close(*results)


@pytest.mark.feature("tied and shared")
@each_class
def test_one_gradient_for_two_parameters(case):
    pair = Pair(case, values([(4,), (4,)], WIDE))
    for seed in range(3):
        for optimizer, params in pair.both:
            (shared,) = values([(4,)], WIDE, seed)
            params[0].grad = params[1].grad = shared
            optimizer.step()
            assert torch.equal(shared, values([(4,)], WIDE, seed)[0])
        pair.check()


@pytest.mark.feature("duplicates")
@each_class
def test_duplicates(case):
    """Guard against other errors across groups, and other warnings within a group, than torch's."""
    (param,) = parameters(values([(2,)], WIDE))
    errors = []
    for cls in (case.fused, case.torch_class):
        with pytest.raises(ValueError, match="more than one parameter group") as error:
            cls([{"params": [param]}, {"params": [param]}])
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    message = "optimizer contains a parameter group with duplicate parameters; "
    caught = []
    for cls in (case.fused, case.torch_class):
        with pytest.warns(UserWarning, match=message) as found:
            cls([param, param])
        caught.append([(one.category, str(one.message)) for one in found])
    assert caught[0] == caught[1]


@pytest.mark.feature("swapped tensors")
@each_class
def test_swap_tensors(case):
    """Guard against old memory or a lost state after ``module.to`` swaps the tensor."""
    pair = Pair(case)
    pair.step(2)
    for _, params in pair.both:
        for param in params:
            new = nn.Parameter(param.detach().clone() + 1)
            param.grad = None
            torch.utils.swap_tensors(param, new)
    pair.step(2)


@pytest.mark.feature("swapped tensors")
@each_class
def test_data_replaced(case):
    pair = Pair(case)
    pair.step(2)
    for _, params in pair.both:
        for param in params:
            param.data = param.data.clone() * 0.5
    pair.step(2)


@pytest.mark.feature("in place")
@each_case
def test_in_place(case):
    """Guard against new storages, unchanged version counters and written gradients."""
    pair = Pair(case)
    pair.step(1)
    ours, params = pair.optimizers[0], pair.params[0]

    def addresses():
        states = [v for p in params for v in state_of(ours, p).values()]
        return [tensor.data_ptr() for tensor in (*params, *states)]

    pair.backward()
    before, versions = addresses(), [[p._version for p in group] for group in pair.params]
    grads = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
    for optimizer in pair.optimizers:
        optimizer.step()
    assert addresses() == before
    for group, old in zip(pair.params, versions, strict=True):
        rose = [p._version > v for p, v in zip(group, old, strict=True)]
        assert all(rose)
    for param, (grad, bits, version) in zip(params, grads, strict=True):
        assert param.grad is grad
        assert torch.equal(grad, bits)
        assert grad._version == version


@pytest.mark.feature("in place")
@each_class
def test_autograd_notices_the_update(case):
    """Guard against a backward pass through overwritten values: it must raise."""
    pair = Pair(case, values([(3,)], WIDE))
    for optimizer, (param,) in pair.both:
        loss = (param**2).sum()
        param.grad = torch.ones_like(param)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        assert param.is_leaf
        assert param.requires_grad


@pytest.mark.feature("in place")
@each_class
def test_views_of_parameters_see_the_update(case):
    pair = Pair(case, values([(6,)], WIDE))
    views = [params[0].detach()[2:4] for params in pair.params]
    pair.step(2)
    for view, params in zip(views, pair.params, strict=True):
        assert torch.equal(view, params[0].detach()[2:4])
