"""Training scripts for torch.optim: frozen, lazy and complex parameters, inference mode, devices.

Faults tried by hand: a gradient taken without its conjugation.
"""

import copy
import io
import math

import pytest
import torch
from helpers.models import BACKENDS, parameters, set_grads, values
from torch import nn

import fused_optim
from fused_optim import SGD, Adagrad, AdamW, ScheduleFreeAdamW
from fused_optim.formats.registry import WEIGHTS
from fused_optim.testing.cases import ONE_PER_CLASS, get_name

each_class = pytest.mark.parametrize("case", ONE_PER_CLASS, ids=get_name)
BF16 = torch.bfloat16


class QuantizedWeight(torch.Tensor):
    """A frozen weight of codes and scales, like a quantized base model under adapters."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, size, stride):
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"QuantizedWeight does not implement {func}")


FROZEN = {
    "uint8": lambda: torch.zeros(6, dtype=torch.uint8),
    "int8": lambda: torch.zeros(6, dtype=torch.int8),
    "bool": lambda: torch.zeros(6, dtype=torch.bool),
    "float8": lambda: torch.zeros(6).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "expanded": lambda: torch.zeros(3, 1).expand(3, 4),
    "fp16": lambda: torch.zeros(6, dtype=torch.float16),
    "complex": lambda: torch.zeros(6, dtype=torch.complex64),
    "codes": lambda: QuantizedWeight(torch.zeros(6, dtype=torch.uint8), torch.ones(1)),
}
BYTES = {"float8": 6, "sparse": 3 * 16 + 3 * 4, "expanded": 48, "fp16": 12, "complex": 48}


def with_adapter(kind):
    """Return a frozen parameter and two trained ones."""
    base = nn.Parameter(FROZEN[kind](), requires_grad=False)
    return [base, *parameters(values([(40,), (3, 7)], BF16))]


@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("cls", [AdamW, Adagrad, SGD])
def test_frozen_parameters_of_any_kind(kind, cls):
    """Guard against refusing a frozen parameter, or changing the others because of it."""
    options = {"weights": "split", "states": "int8", "ema_decay": 0.5, "max_grad_norm": 1.0}
    params = with_adapter(kind)
    with_base = cls(params, lr=0.1, backend="reference", **options)
    others = copy.deepcopy(params[1:])
    alone = cls(others, lr=0.1, backend="reference", **options)
    for step in range(3):
        for ps in (params[1:], others):
            set_grads(ps, values([(40,), (3, 7)], BF16, step))
        with_base.step()
        alone.step()
    assert all(map(torch.equal, params[1:], others))
    assert with_base.grad_norm == alone.grad_norm
    assert with_base.state_dict()["state"].keys() >= {1, 2}


@pytest.mark.parametrize("kind", FROZEN)
def test_memory_and_conversion_with_frozen_parameters(kind, capsys):
    params = with_adapter(kind)
    result = fused_optim.memory(params, AdamW, weights="split", states="int8")
    alone = fused_optim.memory(params[1:], AdamW, weights="split", states="int8")
    assert result._replace(numel=0, parameters=0) == alone._replace(numel=0, parameters=0)
    assert result.numel - alone.numel == params[0].numel()
    assert result.parameters - alone.parameters == BYTES.get(kind, 10 if kind == "codes" else 6)
    optimizer = fused_optim.from_torch(torch.optim.AdamW(params), weights="split")
    set_grads(params[1:], values([(40,), (3, 7)], BF16))
    optimizer.step()


def test_what_is_unfrozen_is_checked_then_and_named():
    """Guard against an error without name and class, or after changes."""
    model = nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 2).half()})
    model["second"].requires_grad_(False)
    optimizer = AdamW(model.named_parameters(), weights="split")
    params = list(model.parameters())
    set_grads(params, [torch.ones_like(p) for p in params])
    before = copy.deepcopy(model.state_dict())
    message = r"parameter 'second\.weight' of shape \(2, 4\) in group 0 must be torch.bfloat16"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    set_grads(params, [*(torch.ones_like(p) for p in params[:2]), None, None])
    optimizer.step()
    with pytest.raises(ValueError, match=message.replace("group 0", "group 1")):
        AdamW(
            [
                {"params": [("a", params[0])]},
                {
                    "params": [("second.weight", nn.Parameter(params[2].detach()))],
                    "weights": "split",
                },
            ]
        )
    coded = nn.Parameter(QuantizedWeight(torch.zeros(6, dtype=torch.uint8), torch.ones(1)))
    with pytest.raises(ValueError, match=r"got .*\.QuantizedWeight, torch\.strided"):
        AdamW([coded])
    param = nn.Parameter(torch.zeros(3))
    optimizer = AdamW([("name", param)])
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of the parameter 'name' of shape"):
        optimizer.step()


@pytest.mark.parametrize("trained", [False, True])
def test_lazy_modules(trained):
    """Guard against shapes read before the first forward pass."""
    runs = []
    for cls in (AdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(2))
        optimizer = cls(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            if trained:
                optimizer.step()
            optimizer.zero_grad()
        runs.append(list(model.parameters()))
    torch.testing.assert_close(*runs)
    model = nn.LazyLinear(5)
    Adagrad(model.parameters())


@each_class
def test_conjugate_gradients(case):
    """Guard against lazily conjugated or negated gradients read from memory."""
    factor = torch.randn(30, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    start = torch.randn(30, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    runs = []
    for lazy in (True, False):
        params = [nn.Parameter(start.clone()), nn.Parameter(start.real.clone())]
        optimizer = case.fused(params, backend="reference", max_grad_norm=1.0)
        for step in range(2):
            grads = [(factor + step).conj(), (factor + step).conj().imag]
            assert grads[0].is_conj()
            assert grads[1].is_neg()
            if not lazy:
                grads = [grads[0].resolve_conj(), grads[1].resolve_neg()]
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
        runs.append([p.detach() for p in params])
    assert all(map(torch.equal, *runs))
    assert not torch.equal(runs[0][0], start)


@pytest.mark.parametrize("view", [lambda x: x.conj(), lambda x: x.conj().imag])
def test_a_parameter_that_is_a_lazy_view_is_refused(view):
    """Guard against updating memory whose values differ from the parameter's."""
    with pytest.raises(ValueError, match="got a conjugate or negative view"):
        AdamW([nn.Parameter(view(torch.ones(3, dtype=torch.complex64)))])


# ---- inference mode, and devices


@pytest.mark.parametrize("name", WEIGHTS)
def test_schedule_free_modes_within_inference_mode(name):
    """Guard against inference tensors left by a change of mode."""
    runs = []
    for inference in (True, False):
        params = parameters(values([5000], BF16))
        optimizer = ScheduleFreeAdamW(params, lr=0.1, weights=name, backend="reference")
        for step in range(3):
            set_grads(params, values([5000], BF16, step))
            optimizer.step()
            with torch.inference_mode(inference):
                optimizer.eval()
                optimizer.train()
        assert not any(t.is_inference() for t in optimizer.state[params[0]].values())
        runs.append([params[0].detach(), *optimizer.state[params[0]].values()])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("states", ["param", "fp32", "int8"])
def test_checkpoints_within_inference_mode(states):
    """Guard against inference tensors left by loading, with casts and without."""
    params = parameters(values([5000], BF16))
    options = {"lr": 0.1, "states": states, "weights": "split", "ema_decay": 0.5}
    optimizer = AdamW(params, backend="reference", **options)
    set_grads(params, values([5000], BF16, 1))
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    others = parameters([p.detach() for p in params])
    for more in ({}, {"states": "bf16"}, {"weights": "plain", "states": "param"}):
        resumed = AdamW(others, backend="reference", **{**options, **more})
        with torch.inference_mode():
            file.seek(0)
            resumed.load_state_dict(torch.load(file))
        assert not any(t.is_inference() for t in resumed.state[others[0]].values())
        set_grads(others, values([5000], BF16, 2))
        resumed.step()
        with torch.inference_mode(), resumed.swap_ema():
            resumed.state_dict()
        resumed.step()


def test_a_first_step_within_inference_mode():
    params = parameters(values([50], torch.float32))
    optimizer = AdamW(params, backend="reference")
    set_grads(params, values([50], torch.float32, 1))
    with torch.inference_mode():
        optimizer.step()
    optimizer.step()


@each_class
def test_another_default_device(case):
    """Guard against own tensors on the default device: meta would lose every value."""
    runs = []
    for device in ("cpu", "meta"):
        params = parameters(values([4500, 3], BF16))
        grads = [values([4500, 3], BF16, step) for step in range(3)]
        options = {"weights": "split24", "states": "int8", "ema_decay": 0.5, "count_stalled": True}
        with torch.device(device):
            optimizer = case.fused(params, backend="reference", max_grad_norm=1.0, **options)
            for given in grads:
                set_grads(params, given)
                optimizer.step()
            saved = optimizer.state_dict()
            optimizer.load_state_dict(saved)
            optimizer.state_dict(format="torch")
            for name in ("eval", "train"):
                getattr(optimizer, name, lambda: None)()
            optimizer.weights_replaced()
            optimizer.zero_grad()
            optimizer.step()
        assert optimizer.grad_norm.device.type == "cpu"
        runs.append([*(p.detach() for p in params), *optimizer.ema_parameters()])
    assert all(map(torch.equal, *runs))


# ---- a step without gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("before", [0, 2])
def test_results_of_a_step_without_gradients(backend, before):
    """Guard against other results than ``clip_grad_norm_`` of nothing."""
    params = parameters(values([5], torch.float32))
    optimizer = AdamW(params, max_grad_norm=1.0, count_stalled=True, backend=backend)
    set_grads(params, [torch.ones(5)])
    for _ in range(before):
        optimizer.step()
    optimizer.zero_grad()
    for _ in range(2):
        optimizer.step()
        results = optimizer.grad_norm, optimizer.clip_factor, optimizer.skipped, optimizer.stalled
        assert [result.item() for result in results] == [0.0, 1.0, False, 0.0]
        assert [result.shape for result in results] == [()] * 4
    assert SGD(params).stalled is None


# ---- who unscales


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, False),
        ({"nonfinite": "skip"}, False),
        ({"fused": True}, True),
        ({"fused": False}, False),
        ({"max_grad_norm": 1.0}, True),
        ({"max_grad_norm": math.inf}, True),
        ({"max_grad_value": 1.0}, True),
    ],
)
@pytest.mark.parametrize("cls", [AdamW, SGD])
def test_a_scaler_unscales_unless_the_step_has_reason_to(cls, options, says):
    """Guard against steps that depend on who unscales."""
    start = values([30], torch.float32)
    runs = []
    for scale in (1024.0, None):
        params = parameters(start)
        optimizer = cls(params, lr=0.1, backend="reference", **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scale is not None)
        assert getattr(optimizer, "_step_supports_amp_scaling", False) == says
        for step in range(4):
            grads = values([30], torch.float32, step)
            if step == 2:
                if scale is None:
                    continue
                grads[0][3] = math.inf
            scaler.scale(torch.zeros(()))
            factor = scaler.get_scale()
            set_grads(params, [factor * grads[0]])
            scaler.step(optimizer)
            # unscaling by a power of two is exact
            assert torch.equal(params[0].grad, grads[0]) or says or step == 2
            scaler.update()
        runs.append(params[0].detach())
    torch.testing.assert_close(*runs)
    assert not torch.equal(runs[0], start[0])
