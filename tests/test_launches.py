"""Kernel launches and uploads of a step."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from helpers.models import KERNELS, parameters, set_grads, values

from fused_optim import AdamW
from fused_optim.backends import kernel_runner, triton

# the numbers of programs are those of the Triton backend
pytestmark = pytest.mark.interpreted(only=True)


@pytest.fixture
def launched(monkeypatch):
    """Record names and grids of the kernels that run."""
    calls = []
    run = kernel_runner.KernelRunner._run

    def spy(self, name, programs, *args):
        if programs:  # nothing runs otherwise
            calls.append((name, programs))
        run(self, name, programs, *args)

    monkeypatch.setattr(kernel_runner.KernelRunner, "_run", spy)
    return calls


@pytest.fixture
def uploaded(monkeypatch):
    """Record shapes and dtypes of the tables that are uploaded."""
    calls = []
    upload = kernel_runner.upload

    def spy(array, device):
        calls.append((array.shape, str(array.dtype)))
        return upload(array, device)

    monkeypatch.setattr(kernel_runner, "upload", spy)
    return calls


def three_groups(count, **options):
    params = parameters(values([1 + 7 * i % 50 for i in range(count)], torch.float32))
    third = count // 3
    groups = [
        {"params": params[:third]},
        {"params": params[third : 2 * third], "lr": 0.1, "weight_decay": 0.0},
        {"params": params[2 * third :], "betas": (0.5, 0.6), "max_grad_value": 1.0},
    ]
    return params, AdamW(groups, backend=KERNELS, **options)


def test_200_tensors_in_3_groups_take_3_launches(launched):
    params, optimizer = three_groups(200, max_grad_norm=1.0, nonfinite="skip")
    for _ in range(2):
        launched.clear()
        set_grads(params, [torch.ones_like(p) for p in params])
        optimizer.step()
        assert launched == [("norm", 200), ("prepare", 2), ("update", 200)]


def test_without_clipping_2_launches(launched):
    params, optimizer = three_groups(9)
    set_grads(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    assert launched == [("prepare", 1), ("update", 9)]


def test_one_more_kind_is_three_more_launches(launched):
    params, optimizer = three_groups(9, max_grad_norm=1.0)
    optimizer.add_param_group({"params": parameters(values([5], torch.bfloat16))})
    params += optimizer.param_groups[-1]["params"]
    set_grads(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    assert [name for name, _ in launched] == ["norm"] * 2 + ["prepare"] * 2 + ["update"] * 2


def test_only_empty_tensors_need_no_update(launched):
    params = parameters([torch.zeros(0), torch.zeros(3, 0)])
    optimizer = AdamW(params, max_grad_norm=1.0, backend=KERNELS)
    set_grads(params, [torch.zeros(0), torch.zeros(3, 0)])
    optimizer.step()
    assert launched == [("prepare", 1)]
    assert optimizer.grad_norm == 0
    assert optimizer.state[params[0]]["step"] == 1


def test_only_what_changed_is_uploaded(uploaded):
    """Guard against uploads without change, and missing ones of options or addresses."""
    params, optimizer = three_groups(9, max_grad_norm=1.0)
    set_grads(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    table, options = ((9, 6), "int64"), ((3, 14), "float64")
    assert sorted(uploaded) == sorted(
        [table, ((2,), "int32"), ((9, 1), "int64"), ((9, 2), "int32"), ((10,), "int64"), options]
    )
    uploaded.clear()
    optimizer.step()
    assert uploaded == []
    optimizer.param_groups[1]["lr"] = 0.2
    optimizer.step()
    assert uploaded == [options]
    uploaded.clear()
    old = params[3].grad  # so that its address is not given out again
    params[3].grad = old.clone()
    optimizer.step()
    assert uploaded == [table]


def test_options_change_no_kernel():
    """Guard against options that choose another kernel, and so compile again."""
    params, optimizer = three_groups(9, max_grad_norm=1.0)
    seen = []
    for lr, betas, norm in (
        (0.1, (0.9, 0.99), 1.0),
        (0.2, (0.5, 0.6), 2.0),
        (0.0, (0.0, 0.0), 9.0),
    ):
        for group in optimizer.param_groups:
            group.update(lr=lr, betas=betas, l1=lr, max_grad_value=norm, weight_decay=lr)
        optimizer.max_grad_norm = norm
        set_grads(params, [torch.ones_like(p) for p in params])
        optimizer.step()
        seen.append(
            {
                kind: {name: ready.fixed for name, ready in bucket.runner.executor.ready.items()}
                for kind, bucket in optimizer._engine.plan.buckets.items()
            }
        )
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 1


def test_tables_outlive_the_work_of_every_stream(monkeypatch):
    """Guard against tables freed while another stream reads them."""
    held = []

    class Table:
        def record_stream(self, stream):
            held.append((self, stream))

    streams = iter(["first", "second"])
    module = SimpleNamespace(current_stream=lambda device: next(streams))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    params, optimizer = three_groups(3)
    set_grads(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    ((kind, bucket),) = optimizer._engine.plan.buckets.items()
    runner = bucket.runner
    runner.key = kind._replace(device=torch.device("cuda"))
    tables = ["table", "firsts", "spans", "groups", "options", "scalars", "scalar_state_table"]
    for name in tables:
        setattr(runner, name, Table())
    for stream in ("first", "second"):
        held.clear()
        runner._record_streams()
        assert [(getattr(runner, name), stream) for name in tables] == sorted(
            held, key=lambda pair: [getattr(runner, n) for n in tables].index(pair[0])
        )


def test_a_tensor_on_the_device_is_copied_there():
    """Guard against reading a device tensor on the host, which would wait for the device."""
    params, optimizer = three_groups(3)
    set_grads(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    (bucket,) = optimizer._engine.plan.buckets.values()
    runner = bucket.runner
    lr = torch.tensor([0.25])
    options = [SimpleNamespace(flat=(lr, *group[1:])) for group in runner.values]
    for value in (0.25, 0.5):
        lr.fill_(value)
        runner._bind_options(options)
        assert runner.options[:, 0].tolist() == [value] * 3
    runner._bind_options([SimpleNamespace(flat=(0.0, *group.flat[1:])) for group in options])
    assert runner.options[:, 0].tolist() == [0.0] * 3  # no trace of the tensor


def test_launches_go_to_the_device_of_the_parameters(monkeypatch):
    """Guard against launches on the current device, which may be another GPU."""
    entered = []
    module = SimpleNamespace(device=lambda device: contextlib.nullcontext(entered.append(device)))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    params, optimizer = three_groups(3)
    set_grads(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    (bucket,) = optimizer._engine.plan.buckets.values()
    runner = bucket.runner
    runner.executor.device = torch.device("cuda", 1)
    runner.update()
    assert entered == [torch.device("cuda", 1)]


def test_the_norm_has_at_most_1024_programs(launched):
    """Guard against a number of programs that depends on the device, and so the order of sums."""
    params = parameters([torch.ones(1100 * triton.GEOMETRY.block)])
    optimizer = AdamW(params, max_grad_norm=1.0, backend=KERNELS)
    set_grads(params, [torch.ones_like(params[0])])
    launch_norm_only(optimizer)
    assert launched[0] == ("norm", 1024)
    assert optimizer.grad_norm == (1100 * triton.GEOMETRY.block) ** 0.5


def launch_norm_only(optimizer):
    """Take a step without updates, whose thousands of programs take long in the interpreter."""
    original = kernel_runner.KernelRunner.update
    kernel_runner.KernelRunner.update = lambda self: None
    try:
        optimizer.step()
    finally:
        kernel_runner.KernelRunner.update = original
