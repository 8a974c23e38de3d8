"""``step_in_backward``, compared bit for bit with ``optimizer.step()`` after backward.

Faults tried by hand: the index of a parameter counted in its group alone, options copied when the
hooks were registered, gradients left in place, averages of updated parameters updated again as
idle, an engine lost in ``load_state_dict``, slices declared later ignored, ``accumulate()`` without
effect.
"""

import contextlib

import pytest
import torch
from helpers.models import BACKENDS, parameters, state_of, values
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import fused_optim
from ci.codegen.rules import FORMAT_PAIRS
from fused_optim import AdamW, Lion, ScheduleFreeAdamW, step_in_backward
from fused_optim.step.engine import StepEngine
from fused_optim.testing.cases import CASES, get_name
from fused_optim.testing.closeness import assert_same_bits

BF16 = torch.bfloat16
SHAPES = [(3, 5), (4160,), (), (70, 64), (2,)]
NEEDS_NORM = ("max_grad_norm", "nonfinite")
LOCAL_CASES = [case for case in CASES if not {*NEEDS_NORM} & case.additions.keys()]


def backward(params, grads):
    """Accumulate gradients by autograd, the last parameter first."""
    pairs = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
    for param, grad in reversed(pairs):
        param.backward(grad.to(param.dtype))


class Pair:
    """Two optimizers of equal parameters; the second updates its parameters in backward."""

    def __init__(self, fused, start, groups=lambda params: params, **options):
        self.params = [parameters(start) for _ in range(2)]
        self.optimizers = [fused(groups(params), **options) for params in self.params]
        self.handle = step_in_backward(self.params[1], self.optimizers[1])

    def step(self, grads):
        """Take a step with both, and compare them."""
        for params, optimizer in zip(self.params, self.optimizers, strict=True):
            backward(params, grads)
            optimizer.step()
        assert all(param.grad is None for param in self.params[1])
        self.optimizers[0].zero_grad()
        self.compare()

    def compare(self):
        """Assert that parameters and states have the same bits."""
        for i, (one, two) in enumerate(zip(*self.params, strict=True)):
            assert_same_bits(f"parameter {i}", two, one)
            states = [state_of(o, p) for o, p in zip(self.optimizers, (one, two), strict=True)]
            assert states[0].keys() == states[1].keys()
            for key, value in states[0].items():
                assert_same_bits(f"{key} of parameter {i}", states[1][key], value)


def noise(seed, dtype=torch.float32, shapes=SHAPES):
    return values(shapes, dtype, seed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", LOCAL_CASES, ids=get_name)
def test_every_optimizer_equals_step(case, backend):
    options = {**case.options, **case.additions, "backend": backend}
    pair = Pair(case.fused, noise(0), **options)
    for seed in range(1, 4):
        pair.step(noise(seed))
    assert pair.optimizers[1].backend_used == backend


@pytest.mark.filterwarnings("ignore:.* did not move in this step")
@pytest.mark.parametrize("cls", [AdamW, Lion, ScheduleFreeAdamW])
@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids=str)
def test_every_format_equals_step(formats, cls):
    """Guard against other random bits: of the index in a group, of the order, of another step."""

    def two_groups(params):
        return [{"params": params[:2], "lr": 0.5}, {"params": params[2:]}]

    options = {"ema_decay": 0.9, "count_stalled": True, "lr": 0.01, **formats}
    pair = Pair(cls, noise(0, BF16), two_groups, **options)
    for seed in range(1, 4):
        pair.step(noise(seed, BF16))
        one, two = pair.optimizers
        assert one.stalled == two.stalled
        assert one.backend_used == two.backend_used


@pytest.mark.parametrize("cls", [fused_optim.SparseAdam, fused_optim.SGD, fused_optim.Adagrad])
def test_sparse_gradients(cls):
    models = [nn.Embedding(10, 4, sparse=True) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [cls(model.parameters(), lr=0.1) for model in models]
    step_in_backward(models[1], optimizers[1])
    for ids in ([1, 2, 1], [3], [1, 9]):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.tensor(ids)).square().sum().backward()
            optimizer.step()
        models[0].zero_grad()
        assert_same_bits("embedding", models[1].weight, models[0].weight)


def test_options_and_schedulers_are_read_live():
    def two_groups(params):
        return [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]

    pair = Pair(AdamW, noise(0), two_groups, weight_decay=0.1)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in pair.optimizers]
    for seed in range(1, 6):
        pair.step(noise(seed))
        for scheduler, optimizer in zip(schedulers, pair.optimizers, strict=True):
            scheduler.step()
            optimizer.param_groups[1]["weight_decay"] = 0.1 * seed
            optimizer.param_groups[0]["states"] = ("fp32", "bf16")[seed % 2]
    assert pair.optimizers[1].param_groups[0]["lr"] == 1e-3 * 0.5**5


def test_the_second_step_takes_the_fast_path(monkeypatch):
    params = parameters(noise(0))
    optimizer = AdamW(params, lr=0.1)
    step_in_backward(params, optimizer)
    backward(params, noise(1))
    optimizer.step()
    full = StepEngine._full_step

    def check(engine, view, amp_state):
        assert not [p for g in view.param_groups for p in g["params"] if p.grad is not None]
        return full(engine, view, amp_state)

    monkeypatch.setattr(StepEngine, "_full_step", check)
    optimizer.param_groups[0]["lr"] = 0.2
    backward(params, noise(2))
    optimizer.step()


class Chain(nn.Module):
    """Linear layers, the first and last of which share their weight."""

    def __init__(self, depth, tied=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(depth))
        if tied:
            self.layers[-1].weight = self.layers[0].weight

    def forward(self, x, recompute=False):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            x = torch.tanh(x)
        return x.square().mean()


def chains(depth=6, tied=False, **options):
    """Return two equal models, and their optimizers."""
    torch.manual_seed(0)
    models = [Chain(depth, tied) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models, [AdamW(model.parameters(), lr=0.1, **options) for model in models]


def assert_equal_models(models):
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_same_bits("parameter", two, one)


@pytest.mark.parametrize("recompute", [False, True])
def test_tied_parameters_are_updated_once(recompute):
    """Guard against an update between two uses of a weight in backward."""
    models, optimizers = chains(tied=True)
    step_in_backward(models[1], optimizers[1])
    for seed in range(3):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in zip(models, optimizers, strict=True):
            model(x, recompute).backward()
            optimizer.step()
        optimizers[0].zero_grad()
        assert_equal_models(models)
    assert optimizers[1].state[models[1].layers[0].weight]["step"] == 3


@pytest.mark.parametrize("in_backward", [False, True])
def test_one_gradient_is_alive_at_a_time(in_backward):
    """Guard against gradients kept by an engine, a cache or a table."""
    models, optimizers = chains(depth=10)
    model, optimizer = models[0], optimizers[0]
    alive, peaks = [], []

    def count(param):
        alive.append(StorageWeakRef(param.grad.untyped_storage()))
        peaks.append(sum(not storage.expired() for storage in alive))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(count)
    if in_backward:
        step_in_backward(model, optimizer)
    for _ in range(3):
        model(torch.ones(4, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert max(peaks) == (1 if in_backward else 10)
        assert all(storage.expired() for storage in alive)
        peaks.clear()


def test_gradient_accumulation():
    models, optimizers = chains()
    handle = step_in_backward(models[1], optimizers[1])
    for _ in range(2):
        for i in range(3):
            x = torch.full((2, 8), 1.0 + i)
            models[0](x).backward()
            before = [param.detach().clone() for param in models[1].parameters()]
            with handle.accumulate() if i < 2 else contextlib.nullcontext():
                models[1](x).backward()
            moved = [not same for same in map(torch.equal, before, models[1].parameters())]
            assert moved == [i == 2] * 6
        for optimizer in optimizers:
            optimizer.step()
        optimizers[0].zero_grad()
        assert_equal_models(models)


def test_a_second_backward_is_refused():
    """Guard against an update for each micro-batch."""
    models, optimizers = chains(2)
    step_in_backward(models[1], optimizers[1])
    models[1](torch.ones(2, 8)).backward()
    before = [param.detach().clone() for param in models[1].parameters()]
    with pytest.raises(RuntimeError, match=r"already updated in this step.*accumulate\(\)"):
        models[1](torch.ones(2, 8)).backward()
    assert all(map(torch.equal, before, models[1].parameters()))


def test_a_closure_and_what_step_returns():
    models, optimizers = chains()
    step_in_backward(models[1], optimizers[1])
    losses = []
    for model, optimizer in zip(models, optimizers, strict=True):

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 8))
            loss.backward()
            return loss

        losses.append([optimizer.step(closure) for _ in range(3)])
    assert losses[0] == losses[1]
    assert_equal_models(models)
    assert optimizers[1].step() is None


@pytest.mark.filterwarnings("ignore:.* did not move in this step")
def test_parameters_that_step_updates():
    """Guard against parameters that neither updates: added later, left out, or unfrozen."""
    start = noise(0, BF16)
    both = [parameters(start) for _ in range(2)]
    options = {"lr": 0.01, "ema_decay": 0.9, "count_stalled": True}
    optimizers = [AdamW(params[:3], **options) for params in both]
    both[1][1].requires_grad_(False)
    handle = step_in_backward(both[1][:3], optimizers[1])
    both[1][1].requires_grad_(True)
    for params, optimizer in zip(both, optimizers, strict=True):
        optimizer.add_param_group({"params": params[3:], "lr": 0.2})
    for seed in range(1, 4):
        with handle.accumulate():  # parameter 0 has its gradient from this micro-batch alone
            backward(both[1][:1], noise(seed)[:1])
        backward(both[1][1:], noise(seed)[1:])
        assert [param.grad is None for param in both[1]] == [False, False, True, False, False]
        backward(both[0], noise(seed))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for one, two in zip(*both, strict=True):
            assert_same_bits("parameter", two, one)
            averages = optimizers[0].state[one]["ema"], optimizers[1].state[two]["ema"]
            assert_same_bits("average", *averages)
        assert 0 < optimizers[0].stalled == optimizers[1].stalled


@pytest.mark.parametrize("name", ["AdamW", "ScheduleFreeSGD"])
def test_averages_of_parameters_with_and_without_gradient(name):
    """Guard against averages that move twice in a step, or not at all."""
    pair = Pair(getattr(fused_optim, name), noise(0), lr=0.1, ema_decay=0.5)
    for seed, absent in enumerate([None, 0, 1, None, 1]):
        pair.step([None if i == absent else g for i, g in enumerate(noise(seed + 1))])
        if seed == 2:  # the other states start again, not the average
            for optimizer, params in zip(pair.optimizers, pair.params, strict=True):
                for key in [key for key in optimizer.state[params[3]] if key != "ema"]:
                    del optimizer.state[params[3]][key]
    with pair.optimizers[1].swap_ema(), pytest.raises(RuntimeError, match="leave it first"):
        backward(pair.params[1], noise(9))


def test_eval_mode_of_a_schedule_free_optimizer():
    params = parameters(noise(0))
    optimizer = ScheduleFreeAdamW(params)
    step_in_backward(params, optimizer)
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before the forward pass"):
        backward(params, noise(1))
    assert not optimizer.state


def test_checkpoints():
    """Guard against an engine that load_state_dict() replaces, and against other states."""
    pair = Pair(AdamW, noise(0, BF16), weights="split24", states="int8", ema_decay=0.9)
    pair.step(noise(1, BF16))
    saved = [optimizer.state_dict() for optimizer in pair.optimizers]
    assert list(saved[0]) == list(saved[1])
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    assert saved[0]["state"].keys() == saved[1]["state"].keys()
    for seed in (2, 3):
        for optimizer, state in zip(pair.optimizers, saved, strict=True):
            optimizer.load_state_dict(state)
        pair.step(noise(seed, BF16))
        assert pair.optimizers[1].backend_used == pair.optimizers[0].backend_used


def test_slices_of_larger_parameters():
    """Guard against a declaration that comes after the first step."""
    pair = Pair(AdamW, noise(0, BF16), weights="stochastic", states="int8", lr=0.1)
    for seed in range(3):
        pair.step(noise(seed + 1, BF16))
        for optimizer, params in zip(pair.optimizers, pair.params, strict=True):
            optimizer.shard(params[1], index=7, offset=64 * seed, numel=99999)


def test_remove_and_context_manager():
    models, optimizers = chains()
    with step_in_backward(models[1], optimizers[1]) as handle:
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.ones(2, 8)).backward()
            optimizer.step()
            optimizer.zero_grad()
        with pytest.raises(RuntimeError, match="already has a handle"):
            step_in_backward(models[1], optimizers[1])
    handle.remove()  # again: harmless
    for model, optimizer in zip(models, optimizers, strict=True):
        model(torch.ones(2, 8)).backward()
        assert all(param.grad is not None for param in model.parameters())
        optimizer.step()
    assert_equal_models(models)
    step_in_backward(models[1], optimizers[1]).remove()


def test_a_compiled_model():
    models, optimizers = chains(2)
    step_in_backward(models[1], optimizers[1])
    compiled = [torch.compile(model, backend="aot_eager") for model in models]
    for _ in range(2):
        for model, optimizer in zip(compiled, optimizers, strict=True):
            model(torch.ones(2, 8)).backward()
            optimizer.step()
        assert all(param.grad is None for param in models[1].parameters())
        optimizers[0].zero_grad()
        assert_equal_models(models)


def test_explained():
    models, optimizers = chains(3)
    models[1].layers[0].weight.requires_grad_(False)
    step_in_backward(models[1], optimizers[1])
    rows = optimizers[1].explain().rows
    assert [row.launch for row in rows] == [None, 1, 2]
    assert all("updated in backward" in row.why for row in rows[1:])
