"""Addresses, lifetimes and layouts, whose faults corrupt a model silently.

Every test runs torch.optim beside ours on the same events. Faults tried by hand: an address table
that is not rebuilt, alignment left unchecked, masks one long, no version bump, gradients kept
alive.
"""

import gc
import weakref

import pytest
import torch
from helpers.models import BACKENDS, KERNELS, parameters, set_grads, values
from helpers.torch_pair import Pair

from fused_optim import SGD, AdamW
from fused_optim.testing.cases import Case

SHAPES = [(40,), (3, 500), (1025,)]


def make_pair(shapes, backend, name="AdamW", **options):
    """Return ours on a backend and torch's, in float32."""
    start = values(shapes, torch.float32)
    return Pair(Case(name, name), start, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_replaced_every_step(backend):
    pair = make_pair(SHAPES, backend)
    for _ in range(4):
        pair.optimizers[0].zero_grad(set_to_none=True)
        pair.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_appear_and_disappear(backend):
    """Guard against a count shared by parameters: a late one has its own bias correction."""
    pair = make_pair(SHAPES, backend)
    for only in ([1], [0, 1], [], [2], [0, 1, 2], [0, 2]):
        pair.step(only=only)
    counts = [pair.optimizers[0].state[p]["step"].item() for p in pair.params[0]]
    assert counts == [3, 3, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_moved(backend):
    pair = make_pair(SHAPES, backend)
    pair.step()
    for param in pair.params[0]:
        old = param.data
        param.data = param.data.clone()
        old.fill_(torch.nan)
    pair.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_group_added_and_removed_in_training(backend):
    pair = make_pair(SHAPES, backend)
    pair.step()
    new = values([(77,)], torch.float32, 9)
    for optimizer, params in pair.both:
        params += parameters(new)
        optimizer.add_param_group({"params": params[-1:], "lr": 0.1})
    pair.step()
    for optimizer, params in pair.both:
        optimizer.param_groups[0]["params"].pop(0)
        del params[0]
    pair.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_freed_and_another_at_its_address(backend):
    """Guard against a state or size remembered by address."""
    memory = torch.zeros(64)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9, backend=backend)
    for size in (64, 32):
        memory.fill_(1.0)
        param = torch.nn.Parameter(memory[:size])
        optimizer.add_param_group({"params": [param]})
        for count in range(1, 3):
            param.grad = torch.ones(size)
            optimizer.step()
            moved = {1: 1.0, 2: 2.9}[count]
            torch.testing.assert_close(memory[:size], torch.full((size,), 1 - moved))
        assert torch.equal(memory[size:], torch.ones(64 - size))
        del optimizer.param_groups[-1]
        del optimizer.state[param]
        del param
        gc.collect()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_optimizers_on_disjoint_parameters(backend):
    first, second = make_pair(SHAPES, backend), make_pair(SHAPES, backend, "SGD", momentum=0.9)
    for _ in range(3):
        first.step()
        second.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_reference_to_tensors_of_the_user_remains(backend):
    """Guard against references to gradients, removed parameters and dropped states."""
    params = parameters(values(SHAPES, torch.float32))
    optimizer = AdamW(params, backend=backend, max_grad_norm=1.0)
    set_grads(params, values(SHAPES, torch.float32))
    optimizer.step()
    gone = [weakref.ref(params[0].grad), weakref.ref(optimizer.state[params[0]]["exp_avg"])]
    optimizer.zero_grad()
    optimizer.state.clear()
    assert [ref() for ref in gone] == [None, None]
    gone = weakref.ref(params[0])
    optimizer.param_groups[0]["params"].clear()
    params.clear()
    gc.collect()
    assert gone() is None


@pytest.mark.interpreted
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_alignment_changes_from_step_to_step(offset):
    """Guard against vector accesses to gradients aligned to their element only."""
    pair = make_pair([(1025,), (300,)], KERNELS)
    pair.step()
    aligned = list(pair.optimizers[0]._engine.plan.buckets)
    assert [key.vector for key in aligned] == [4 if KERNELS == "triton" else 1]
    grads = values([(1025,), (300,)], torch.float32, 5)
    flat = torch.cat([torch.zeros(offset), grads[0], grads[1]])
    pair.params[0][0].grad = flat[offset : offset + 1025]
    pair.params[0][1].grad = flat[offset + 1025 :]
    set_grads(pair.params[1], grads)
    pair.optimizers[0].step()
    pair.optimizers[1].step()
    torch.testing.assert_close(pair.params[0], pair.params[1])
    vectors = {key.vector for key in pair.optimizers[0]._engine.plan.buckets}
    # for the CPU code is compiled once, for any alignment
    wide = {4, 1} if KERNELS == "triton" else {1}
    assert vectors == (wide if offset in (0, 3) else {1})


def layouts():
    """Return tensors in different layouts, by name."""
    base = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    return {
        "channels_last": base.clone().to(memory_format=torch.channels_last),
        "transposed": base[0, 0].clone().t(),
        "permuted": base.clone().permute(2, 0, 3, 1),
        "sliced": base.clone()[:, ::2],
        "one_of_a_row": base.clone()[0, :, 0, 1],
        "size_one_dims": base[0, :4, :1].clone().transpose(0, 1),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, name):
    """Guard against pairing by address of tensors in different layouts."""
    ours, theirs = torch.nn.Parameter(layouts()[name]), torch.nn.Parameter(layouts()[name])
    fused = AdamW([ours], lr=0.1, backend=backend, max_grad_norm=1.0)
    torch_optimizer = torch.optim.AdamW([theirs], lr=0.1, foreach=False)
    storage, pointer = ours.untyped_storage().data_ptr(), ours.data_ptr()
    for step in range(4):
        grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
        given = [grad, grad.to(ours.dtype).as_strided(grad.shape, grad.stride()), None, None][step]
        if given is None:  # the layout of the parameter, and one of its own
            given = torch.empty_strided(ours.shape, ours.stride()).copy_(grad)
            given = given if step == 2 else grad.flip(0).contiguous().flip(0)
        ours.grad = given
        theirs.grad = grad.clone()
        fused.step()
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        torch_optimizer.step()
        torch.testing.assert_close(ours, theirs)
        if step == 1:  # a loaded state is often contiguous, whatever the parameter is
            for slot in ("exp_avg", "exp_avg_sq"):
                state = fused.state[ours][slot]
                fused.state[ours][slot] = state.clone(memory_format=torch.contiguous_format)
    assert (ours.untyped_storage().data_ptr(), ours.data_ptr()) == (storage, pointer)


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_of_a_strided_parameter_are_untouched(backend):
    base = torch.full((6, 10), 7.0)
    param = torch.nn.Parameter(base[::2, 1::3])
    optimizer = SGD([param], lr=1.0, backend=backend)
    param.grad = torch.ones(3, 3)
    optimizer.step()
    expected = torch.full((6, 10), 7.0)
    expected[::2, 1::3] = 6.0
    assert torch.equal(base, expected)


@pytest.mark.parametrize("size", [1, 2, 31, 1023, 1024, 1025])
def test_guards_around_each_tensor(size):
    """Guard against masks one too long, which the interpreter does not detect."""
    memory = {name: torch.full((size + 2,), 77.0) for name in ("p", "g", "m", "v")}
    views = {name: tensor[1 : 1 + size] for name, tensor in memory.items()}
    for name, view in views.items():
        view.fill_(0.25 if name == "g" else 0.5)
    param = torch.nn.Parameter(views["p"])
    param.grad = views["g"]
    optimizer = AdamW([param], lr=0.1, backend=KERNELS, max_grad_norm=1.0)
    optimizer.state[param] = {
        "step": torch.tensor(3.0),
        "exp_avg": views["m"],
        "exp_avg_sq": views["v"],
    }
    optimizer.step()
    for name, tensor in memory.items():
        assert tensor[0] == tensor[-1] == 77.0, name
        assert name == "g" or (views[name] != 0.5).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_version_counters_and_storages(backend):
    """Guard against updates that autograd does not see."""
    param = torch.nn.Parameter(torch.ones(5))
    optimizer = SGD([param], backend=backend)
    loss = (param * param).sum()
    param.grad = torch.ones(5)
    version, pointer = param._version, param.data_ptr()
    optimizer.step()
    assert param._version > version
    assert param.data_ptr() == pointer
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_devices_are_routed_apart():
    """Guard against one launch for parameters on two devices."""
    params = parameters(values([(5,), (7,)], torch.float32))
    params.append(torch.nn.Parameter(torch.zeros(6, device="meta")))
    optimizer = AdamW(params, max_grad_norm=1.0, nonfinite="skip")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    used = {key.device.type: key.backend for key in optimizer._engine.plan.buckets}
    assert used == {"cpu": KERNELS, "meta": "reference"}
    assert optimizer.backend_used == ", ".join(sorted(["reference", KERNELS]))
    assert optimizer.grad_norm == pytest.approx(12**0.5)
    assert optimizer.state[params[2]]["exp_avg"].device.type == "meta"
    assert optimizer.state[params[2]]["step"].device.type == "meta"


def test_backend_per_group():
    params = parameters(values([(5,), (5,)], torch.float32))
    groups = [
        {"params": params[:1], "backend": KERNELS},
        {"params": params[1:], "backend": "reference"},
    ]
    optimizer = SGD(groups, max_grad_norm=1.0)
    set_grads(params, [torch.ones(5), torch.ones(5)])
    optimizer.step()
    assert optimizer.backend_used == ", ".join(sorted(["reference", KERNELS]))
    assert optimizer.grad_norm == pytest.approx(10**0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_complex_parameters(backend):
    start = torch.randn(30, dtype=torch.complex64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    fused, torch_optimizer = (
        AdamW([ours], lr=0.1, backend=backend),
        torch.optim.AdamW([theirs], lr=0.1),
    )
    for _ in range(3):
        ours.grad = torch.randn(30, dtype=torch.complex64)
        theirs.grad = ours.grad.clone()
        fused.step()
        torch_optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert fused.state[ours]["exp_avg"].dtype == torch.complex64
