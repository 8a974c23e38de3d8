"""``optimizer.explain()``, compared with what a step then does.

Faults tried by hand: existing states left out of the copies, the ``small`` rule decided by the
slice instead of the whole parameter, addresses of copied columns counted, passes of duplicates
merged, the first launch numbered 0, states created in the optimizer instead of its view.
"""

import io
import sys

import pytest
import torch
from helpers.models import BACKENDS, KERNELS, parameters, set_grads, values
from torch import nn
from torch.nn import Parameter

import fused_optim
from ci.codegen.rules import FORMAT_PAIRS
from fused_optim import SGD, AdamW, SparseAdam
from fused_optim.backends.base import CompileError
from fused_optim.explain import predict_rows
from fused_optim.testing.cases import CASES, Case, get_name

BF16 = torch.bfloat16
SHAPES = [(3, 5), (5000,), ()]


def make_grads(params):
    set_grads(params, [torch.ones_like(param) for param in params])


def keys_of_step(optimizer):
    """Return the bucket key and the launch of every parameter in the last step."""
    buckets = list(optimizer._engine.plan.buckets.items())
    found = {i: (key, n) for n, (key, b) in enumerate(buckets, 1) for i in b.rows}
    return [found[i] for i in range(len(found))]


def predicted(optimizer):
    """Return the explained bucket key and launch of every parameter that is updated."""
    keys = [key for _, key, _ in predict_rows(optimizer, optimizer._engine) if key is not None]
    launches = [row.launch for row in optimizer.explain().rows if row.launch is not None]
    return list(zip(keys, launches, strict=True))


def assert_explained(optimizer):
    """Assert that a step does what was explained before it, and is explained so after it."""
    before = predicted(optimizer)
    backends = {row.backend for row in optimizer.explain().rows if row.launch is not None}
    optimizer.step()
    assert before == keys_of_step(optimizer)
    assert optimizer.backend_used == ", ".join(sorted(backends))
    assert predicted(optimizer) == before


def two_groups(case, **options):
    """Return an optimizer with two groups of parameters of three dtypes."""
    params = [
        param
        for dtype in (torch.float32, BF16, torch.float64)
        for param in parameters(values(SHAPES, dtype))
    ]
    groups = [{"params": params[:4]}, {"params": params[4:], "ema_decay": 0.9, "lr": 0.5}]
    make_grads(params)
    return case.fused(groups, **{**case.options, **case.additions, **options})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=get_name)
def test_every_optimizer_is_explained(case, backend):
    assert_explained(two_groups(case, backend=backend))


@pytest.mark.filterwarnings("ignore:.* did not move in this step")
@pytest.mark.parametrize("name", ["AdamW", "SGD", "ScheduleFreeAdamW", "Adagrad"])
@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids=str)
def test_every_format_is_explained(formats, name):
    for options in ({}, {"ema_decay": 0.5, "count_stalled": True}):
        params = parameters(values([*SHAPES, (70, 64)], BF16))
        make_grads(params)
        optimizer = getattr(fused_optim, name)(params, **options, **formats)
        for row in optimizer.explain().rows:
            assert row.weights == formats["weights"]
            narrow = {row.states[k] for k in ("exp_avg", "exp_avg_sq", "sum") if k in row.states}
            small = formats["states"] in ("int8", "fp8") and row.shape not in [(5000,), (70, 64)]
            assert narrow <= {"fp32 (small)" if small else formats["states"]}
            wide = {row.states[key] for key in ("ema", "z") if key in row.states}
            assert wide <= ({"param"} if set(formats.values()) == {"plain", "param"} else {"fp32"})
        assert_explained(optimizer)


def test_states_of_another_format_and_dtype():
    """Guard against a guess of dtypes: a state in the parameter's format keeps its own."""
    params = parameters(values([(5000,), (5000,)], BF16))
    make_grads(params)
    optimizer = AdamW(params, states="fp32")
    optimizer.step()
    optimizer.param_groups[0]["states"] = "param"  # the states remain in float32
    assert [row.states["exp_avg"] for row in optimizer.explain().rows] == ["param"] * 2
    assert_explained(optimizer)
    assert torch.float32 in optimizer._engine.bucket_keys[0].dtypes
    optimizer.param_groups[0]["states"] = "int8"
    assert_explained(optimizer)


def test_a_slice_is_as_large_as_its_whole():
    params = parameters(values([(64,), (64,)], BF16))
    make_grads(params)
    optimizer = AdamW(params, states="int8")
    optimizer.shard(params[0], index=0, offset=0, numel=8192)
    rows = optimizer.explain().rows
    assert [row.states["exp_avg"] for row in rows] == ["int8", "fp32 (small)"]
    assert "4096" in rows[1].why
    assert "4096" not in rows[0].why
    assert_explained(optimizer)


def snapshot(optimizer):
    """Return ids, addresses, versions and bits of everything that a step could change."""
    tensors = [t for g in optimizer.param_groups for p in g["params"] for t in (p, p.grad)]
    tensors += [value for entry in optimizer.state.values() for value in entry.values()]
    real = [t for t in tensors if isinstance(t, torch.Tensor)]
    described = [(id(t), t.data_ptr(), t._version, t.clone()) for t in real]
    options = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    entries = [(id(p), list(entry)) for p, entry in optimizer.state.items()]
    return described, options, entries, dict(optimizer._engine.resolved), optimizer._engine.cache


@pytest.mark.parametrize("name", ["AdamW", "ScheduleFreeAdamW", "ASGD", "NAdam", "Adagrad"])
def test_nothing_is_changed(name, monkeypatch):
    """Guard against created or converted states, and against kernels compiled for a table."""
    case = Case(name, name)
    optimizer = two_groups(case, weights="split", states="int8")
    for step in range(2):
        before = snapshot(optimizer)
        with monkeypatch.context() as patch:
            patch.setattr(
                "fused_optim.backends.select.make_runner", lambda key: pytest.fail("a runner")
            )
            optimizer.explain()
        after = snapshot(optimizer)
        assert before[1:] == after[1:]
        for (*old, bits), (*new, other) in zip(before[0], after[0], strict=True):
            assert old == new
            assert torch.equal(bits, other)
        if step == 0:
            optimizer.step()
            optimizer.param_groups[0]["states"] = "fp8"  # the next step converts them


def test_before_any_gradient():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = AdamW(model.named_parameters())
    before = predicted(optimizer)
    assert all(param.grad is None for param in model.parameters())
    assert not optimizer.state
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert keys_of_step(optimizer) == before


def test_names_shapes_and_lines():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    named = AdamW(model.named_parameters()).explain()
    assert [row.name for row in named.rows] == [name for name, _ in model.named_parameters()]
    assert [row.shape for row in named.rows] == [(2, 3), (2,), (1, 2)]
    groups = [{"params": [p]} for p in model.parameters()]
    assert [row.name for row in SGD(groups, lr=0.1).explain().rows] == ["0.0", "1.0", "2.0"]
    lines = str(named).splitlines()
    assert len(lines) == 1 + 3
    assert [line.split()[0] for line in lines] == ["parameter", *(r.name for r in named.rows)]
    starts = {line.index(word) for line, word in zip(lines, ["rule"] + 3 * ["adam"], strict=True)}
    assert len(starts) == 1, "the columns are aligned"
    assert repr(named) == str(named)


def test_frozen_lazy_and_unfrozen():
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2))
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    optimizer = AdamW(model.named_parameters())
    frozen, late, *lazy = optimizer.explain().rows
    assert frozen.why == "frozen: requires_grad=False, no update"
    assert frozen.launch is late.launch is None
    for row in lazy:
        assert row.why.startswith("lazy: no shape yet")
        assert (row.shape, row.launch, row.rule) == (None, None, "")
    model[0].bias.grad = torch.ones(2)  # a step updates what has a gradient
    assert optimizer.explain().rows[1].launch == 1
    optimizer.step()
    assert keys_of_step(optimizer) == predicted(optimizer)


def test_meta_tensors():
    with torch.device("meta"):
        params = [Parameter(torch.empty(1 << 40)), Parameter(torch.empty(8, dtype=BF16))]
    optimizer = AdamW(params, states="int8")
    rows = optimizer.explain().rows
    assert [(row.backend, row.launch, row.placement) for row in rows] == [
        ("reference", 1, "meta"),
        ("reference", 2, "meta"),
    ]
    assert all("meta tensors have no data" in row.why for row in rows)
    make_grads(params)
    assert_explained(optimizer)
    chosen = AdamW(params, backend="native").explain().rows[0]
    assert chosen.launch is None
    assert chosen.why.startswith("step() will raise RuntimeError: backend='native' cannot be used")


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        params = [Parameter(torch.empty(8))]
        optimizer = AdamW(params)
        (row,) = optimizer.explain().rows
        make_grads(params)
        assert_explained(optimizer)
    assert (row.backend, row.placement) == ("reference", "cpu")
    assert "fake tensors have no data" in row.why


def test_why_not_another_backend(monkeypatch):
    (param,) = parameters(values([5], torch.float32))
    assert AdamW([param], backend="reference").explain().rows[0].why == "backend='reference'"
    select = "fused_optim.explain"
    monkeypatch.setattr(f"{select}.triton_unavailable_reason", lambda device: "no GPU")
    row = AdamW([param]).explain().rows[0]
    assert (row.backend, row.why) == ("native", "not triton: no GPU")
    monkeypatch.setattr(
        "fused_optim.backends.select.native_unavailable_reason", lambda d: "no LLVM"
    )
    monkeypatch.setattr(f"{select}.native_unavailable_reason", lambda device: "no LLVM")
    row = AdamW([param]).explain().rows[0]
    assert (row.backend, row.why) == ("reference", "not triton: no GPU; not native: no LLVM")


def test_kernels_that_did_not_compile(monkeypatch):
    """Guard against the backend of the first step, where a later one fell back."""

    def fail(executor):
        raise CompileError("no compiler")

    monkeypatch.setattr("fused_optim.backends.native.executor.NativeExecutor.compile", fail)
    params = parameters(values([5], torch.float32))
    make_grads(params)
    optimizer = AdamW(params)
    with pytest.warns(UserWarning, match="no compiler"):
        optimizer.step()
    assert optimizer.explain().rows[0].backend == optimizer.backend_used == "reference"
    assert "could not be compiled" in optimizer.explain().rows[0].why


def test_what_a_step_would_raise():
    params = parameters(values([5, 6], torch.float32))
    optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}], backend="reference")
    make_grads(params)
    optimizer.step()
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(7)
    first, second = optimizer.explain().rows
    assert first.launch == 1
    with pytest.raises(ValueError, match="exp_avg") as raised:
        optimizer.step()
    assert second.why == f"step() will raise ValueError: {raised.value}"
    assert "in group 1" in second.why


def test_weights_that_have_no_extra_bits():
    params = [*parameters(values([5], torch.float32)), *parameters(values([5], BF16))]
    first, second = AdamW(params, weights="split", backend="reference").explain().rows
    assert (first.weights, second.weights) == ("plain", "split")
    assert "weights='split' is for bfloat16" in first.why
    assert "split" not in second.why


@pytest.mark.interpreted(only=True)
@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_misaligned_addresses(name):
    """Guard against one bucket for all addresses, and against those of columns that are copied."""
    flat = torch.zeros(1 << 14)
    wide = flat[1:7001].view(70, 100)
    start = [flat[4:104], flat[1:101], wide[:, :50], wide.mT, flat[4:104].to(BF16)]
    params = [Parameter(tensor.detach()) for tensor in start]
    optimizer = getattr(fused_optim, name)(params, backend=KERNELS)
    aligned = [row.why == "backend='triton'" for row in optimizer.explain().rows]
    assert aligned == [True, False, True, False, True]
    make_grads(params)
    assert_explained(optimizer)
    params[0].grad = torch.zeros(101)[1:]
    params[2].grad = torch.zeros(7001)[1:].view(70, 100)[:, :50]  # copied
    state = optimizer.state[params[4]]
    state["exp_avg"] = torch.zeros(101, dtype=BF16)[1:]
    assert_explained(optimizer)
    assert {key.aligned for key in optimizer._engine.bucket_keys} == {True, False}


@pytest.mark.parametrize("cls", [SGD, SparseAdam, fused_optim.Adagrad])
def test_sparse_gradients(cls):
    model = nn.Embedding(10, 4, sparse=True)
    options = {} if cls is SparseAdam else {"backend": "reference"}
    optimizer = cls(model.parameters(), lr=0.1, **options)
    if cls is SparseAdam:  # the others take dense gradients too
        assert optimizer.explain().rows[0].launch == 1
    model(torch.tensor([1, 2, 1])).sum().backward()
    assert_explained(optimizer)


def test_a_sparse_gradient_that_is_refused():
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = AdamW(model.parameters())
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse") as raised:
        optimizer.step()
    assert optimizer.explain().rows[0].why == f"step() will raise RuntimeError: {raised.value}"


def test_a_parameter_twice_in_its_group():
    params = parameters(values([5, 6], torch.float32))
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = SGD([params[0], params[1], params[0]], lr=0.1)
    rows = optimizer.explain().rows
    assert [row.launch for row in rows] == [1, 1, 2]
    assert "repeated in its group" in rows[2].why


def test_rich_shows_names_as_they_are(monkeypatch):
    """Guard against brackets read as markup, and against an import of rich without need."""
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)
    params = parameters(values([5, 6], torch.float32))
    named = [("layers[red]", params[0]), ("b", params[1])]
    explanation = AdamW(named, backend="reference").explain()
    console.print(explanation)
    shown = console.file.getvalue()
    assert "layers[red]" in shown
    assert "1: backend='reference'" in shown
    for module in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert "layers[red]" in str(explanation)


def test_dtensors_show_their_mesh():
    dist = torch.distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        named = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
        params = [
            Parameter(distribute_tensor(torch.ones(64, 128), named, [Shard(0), Replicate()])),
            Parameter(distribute_tensor(torch.ones(8), init_device_mesh("cpu", (1,)), [Shard(0)])),
            *parameters(values([(70, 64)], torch.float32)),
        ]
        optimizer = AdamW(params, states="int8")
        rows = optimizer.explain().rows
        make_grads(params)
        assert_explained(optimizer)
    finally:
        dist.destroy_process_group()
    assert [row.placement for row in rows] == [
        "cpu, mesh (dp=1, tp=1), Shard(dim=0), Replicate()",
        "cpu, mesh (1), Shard(dim=0)",
        "cpu",
    ]
    assert [row.shape for row in rows] == [(64, 128), (8,), (70, 64)]
    assert [row.states["exp_avg"] for row in rows] == ["int8", "fp32 (small)", "int8"]
