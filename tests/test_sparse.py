"""Sparse gradients: SGD, Adagrad and SparseAdam beside torch's, and the refusals.

Guards: rows without a gradient moved, duplicate indices updated twice, a norm of gradients that are
not coalesced, a fast path that reuses the rows of the last step.
"""

import math

import pytest
import torch
from helpers.models import BACKENDS, parameters, values
from sparse_gradients import assert_refused, message_of_torch, sparse_gradient
from torch import nn

import fused_optim
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.testing.closeness import assert_as_accurate, assert_same_bits

# torch's own optimizers make sparse tensors without saying whether to check them
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
ROWS, COLUMNS = 40, 6
CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-maximize": ("SGD", {"lr": 0.1, "maximize": True}),
    "sgd-momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd-dampened": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "sgd-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad-start": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.5, "maximize": True},
    ),
    "sparse-adam": ("SparseAdam", {"lr": 0.1}),
    "sparse-adam-options": (
        "SparseAdam",
        {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-2, "maximize": True},
    ),
}
each_case = pytest.mark.parametrize("case", CASES)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def both(case):
    """Return our class, torch's, and the options of a case."""
    name, options = CASES[case]
    return getattr(fused_optim, name), getattr(torch.optim, name), options


class Model(nn.Module):
    """An embedding with a sparse gradient and, unless ``only_sparse``, a dense layer."""

    def __init__(self, dtype, only_sparse):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(ROWS, COLUMNS, sparse=True, dtype=dtype)
        self.dense = nn.Linear(COLUMNS, 1, dtype=dtype).requires_grad_(not only_sparse)

    def train_steps(self, optimizer, steps=6):
        """Train; the third batch has other words than the second, and as many."""
        losses = []
        for seed in range(steps):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(seed)
            words = torch.randint(0, ROWS - 5, (12,), generator=generator)
            words[1] = words[0]  # a word that is twice in a batch
            loss = self.dense(self.embedding(words)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses


def train(cls, case, dtype, **additions):
    name, options = CASES[case]
    model = Model(dtype, only_sparse=name == "SparseAdam")
    trained = [param for param in model.parameters() if param.requires_grad]
    start = model.embedding.weight.detach().clone()
    optimizer = cls(trained, **options, **additions)
    model.train_steps(optimizer)
    return model, optimizer, start


@each_backend
@each_case
def test_training_beside_torch(case, backend):
    """Embedding and linear layer in one optimizer; rows of words that are in no batch stay."""
    ours, peer, _ = both(case)
    mine, optimizer, start = train(ours, case, torch.float64, backend=backend)
    theirs, other, _ = train(peer, case, torch.float64)
    torch.testing.assert_close(dict(mine.state_dict()), dict(theirs.state_dict()))
    assert torch.equal(mine.embedding.weight[-5:], start[-5:])
    assert not torch.equal(mine.embedding.weight, start)
    found = optimizer.state[mine.embedding.weight]
    for key, value in other.state[theirs.embedding.weight].items():
        expected = value.to_dense() if isinstance(value, torch.Tensor) else torch.tensor(value)
        torch.testing.assert_close(found[key], expected.to(found[key].dtype))


def run(cls, options, start, dtype, **additions):
    """Return a parameter after steps with gradients that float64 and ``start.dtype`` share."""
    (param,) = parameters([start], dtype)
    optimizer = cls([param], **options, **additions)
    for seed in range(6):
        param.grad = sparse_gradient(start, seed).coalesce().to(dtype)
        optimizer.step()
    return param.detach(), dict(optimizer.state.get(param, {}))


@each_backend
@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy(case, dtype, backend):
    ours, peer, options = both(case)
    (start,) = values([(ROWS, COLUMNS)], dtype)
    mine, _ = run(ours, options, start, dtype, backend=backend)
    theirs, _ = run(peer, options, start, dtype)
    exact, _ = run(peer, options, start, torch.float64)
    assert_as_accurate(case, mine, theirs, exact)


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_backends_give_the_same_bits(case, dtype):
    ours, _, options = both(case)
    (start,) = values([(ROWS, COLUMNS)], dtype)
    mine, other = (run(ours, options, start, dtype, backend=name) for name in BACKENDS)
    assert_same_bits("parameter", mine[0], other[0])
    assert mine[1].keys() == other[1].keys()
    for name in mine[1]:
        assert_same_bits(name, mine[1][name], other[1][name])


@each_backend
@each_case
@pytest.mark.parametrize("kind", ["two sparse dims", "all sparse", "transposed", "no rows"])
def test_kinds_of_sparse_gradients(case, kind, backend):
    ours, peer, options = both(case)
    shape = (9, 4, 3)
    sparse_dim = {"two sparse dims": 2, "all sparse": 3}.get(kind, 1)
    results = []
    for cls, added in ((ours, {"backend": backend}), (peer, {})):
        (param,) = parameters(values([shape], torch.float64))
        if kind == "transposed":
            param = nn.Parameter(param.detach().permute(2, 0, 1))
        optimizer = cls([param], **options, **added)
        for seed in range(4):
            param.grad = sparse_gradient(param, seed, sparse_dim)
            if kind == "no rows" and seed == 2:
                empty = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, *shape[1:]).double()
                param.grad = torch.sparse_coo_tensor(*empty, shape, check_invariants=True)
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@each_backend
@each_case
def test_dense_and_sparse_gradients_in_turn(case, backend):
    """The fast path of a dense step is left when a gradient becomes sparse, and taken up again."""
    ours, _, options = both(case)
    if ours is fused_optim.SparseAdam:
        ours, options = fused_optim.Adagrad, {}
    results = []
    for turns in (True, False):
        (param,) = parameters(values([(ROWS, COLUMNS)], torch.float64))
        optimizer = ours([param], **options, backend=backend)
        for seed in range(8):
            grad = sparse_gradient(param, seed)
            param.grad = grad if turns and seed in (2, 3, 6) else grad.to_dense()
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@each_backend
@each_case
def test_the_norm_counts_coalesced_gradients(case, backend):
    ours, peer, options = both(case)
    results = []
    for cls, added in ((ours, {"backend": backend, "max_grad_norm": 1.0}), (peer, {})):
        only_sparse = ours is fused_optim.SparseAdam
        shapes = [(ROWS, COLUMNS)] if only_sparse else [(ROWS, COLUMNS), (5,)]
        params = parameters(values(shapes, torch.float64))
        optimizer = cls(params, **options, **added)
        for seed in range(3):
            sparse = sparse_gradient(params[0], seed).coalesce()
            dense = values([(5,)], torch.float64, seed)[0]
            norm = torch.cat([sparse.to_dense().flatten(), dense[: 0 if only_sparse else 5]]).norm()
            factor = 1.0 if cls is ours else min(1.0, 1.0 / (norm.item() + 1e-6))
            given = [sparse_gradient(params[0], seed, scale=factor), dense * factor]
            for param, grad in zip(params, given, strict=False):
                param.grad = grad
            optimizer.step()
            if cls is ours:
                torch.testing.assert_close(optimizer.grad_norm, norm)
        results.append([param.detach() for param in params])
    torch.testing.assert_close(*results)


@each_backend
@each_case
def test_nonfinite_gradients_are_skipped(case, backend):
    ours, _, options = both(case)
    (param,) = parameters(values([(ROWS, COLUMNS)], torch.float32))
    optimizer = ours([param], **options, nonfinite="skip", backend=backend)
    param.grad = sparse_gradient(param, 0)
    optimizer.step()
    state = optimizer.state.get(param, {})
    before = [tensor.detach().clone() for tensor in (param, *state.values())]
    param.grad = sparse_gradient(param, 1)
    param.grad._values()[3, 2] = math.inf
    optimizer.step()
    assert optimizer.skipped
    assert all(map(torch.equal, before, (param.detach(), *state.values())))
    param.grad = sparse_gradient(param, 2)
    optimizer.step()
    assert not optimizer.skipped
    assert not torch.equal(before[0], param.detach())


@each_backend
@each_case
@pytest.mark.parametrize("by_itself", [True, False])
def test_grad_scaler(case, by_itself, backend):
    ours, peer, options = both(case)
    added = {"backend": backend, "max_grad_norm": math.inf if by_itself else None}
    results = []
    for cls, own in ((ours, added), (peer, {})):
        (param,) = parameters(values([(ROWS, COLUMNS)], torch.float32))
        optimizer = cls([param], **options, **own)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        scaler.scale(torch.zeros(()))
        for seed in range(5):
            param.grad = sparse_gradient(param, seed, scale=scaler.get_scale())
            if seed == 1:
                param.grad._values()[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@each_backend
@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam", "SGD"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("states", STATES)
def test_formats(name, weights, states, backend):
    """Formats that round to nearest are close to float32; others are refused, and nothing moves."""
    cls = getattr(fused_optim, name)
    (start,) = values([(1024, 8)], torch.bfloat16)
    params = parameters([start, start.float()])
    formats = {"weights": weights, "states": states}
    optimizers = [cls(params[:1], lr=0.05, **formats, backend=backend), cls(params[1:], lr=0.05)]
    stochastic = weights in ("split24", "kahan", "stochastic") or (
        states in ("bf16", "int8", "fp8") and name != "SGD"
    )
    for seed in range(3):
        for param in params:
            param.grad = sparse_gradient(param, seed)
    if stochastic:
        with pytest.raises(RuntimeError, match=r"stochastic rounding .*'master' or 'split'"):
            optimizers[0].step()
        assert torch.equal(params[0], start)
        params[0].grad = params[0].grad.to_dense()
        if name != "SparseAdam":
            optimizers[0].step()
        return
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(params[0].float(), params[1], rtol=2**-7, atol=1e-2)
    assert not torch.equal(params[0], start)


@pytest.mark.parametrize(
    "name", sorted(set(fused_optim.__all__) - {"SGD", "Adagrad", "SparseAdam"})
)
def test_other_optimizers_refuse_sparse_gradients(name):
    """With torch's words first, where torch has the optimizer."""
    cls = getattr(fused_optim, name)
    if not isinstance(cls, type) or not issubclass(cls, torch.optim.Optimizer):
        return
    param = nn.Parameter(torch.ones(ROWS, COLUMNS))
    param.grad = sparse_gradient(param, 0)
    words = f"{name} does not support sparse gradients"
    if hasattr(torch.optim, name):
        words = message_of_torch(name, {}, param.grad)
    assert_refused(cls([param]), param, f"^{words}: the gradient of the parameter of shape")


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.parametrize("option", ["weight_decay", "l1"])
def test_decay_is_refused(name, option):
    param = nn.Parameter(torch.ones(ROWS, COLUMNS))
    param.grad = sparse_gradient(param, 0)
    words = "weight_decay option is not compatible with sparse gradients"
    assert message_of_torch("Adagrad", {"weight_decay": 0.1}, param.grad) == words
    message_of_torch("SGD", {"weight_decay": 0.1}, param.grad)
    optimizer = getattr(fused_optim, name)([param], **{option: 0.1})
    assert_refused(optimizer, param, f"^{words.replace('weight_decay', option)}: ")


def test_what_rows_cannot_have():
    param = nn.Parameter(torch.ones(ROWS, COLUMNS))
    param.grad = sparse_gradient(param, 0)
    assert_refused(fused_optim.Adagrad([param], ema_decay=0.9), param, "pass ema_decay=None")
    scalar = nn.Parameter(torch.tensor(1.0))
    scalar.grad = torch.tensor(1.0).to_sparse()
    assert_refused(fused_optim.Adagrad([scalar]), scalar, "has no sparse dimension")
    nowhere = torch.zeros(0, 1, dtype=torch.int64), torch.ones(1, ROWS, COLUMNS)
    param.grad = torch.sparse_coo_tensor(*nowhere, param.shape, check_invariants=True)
    assert_refused(fused_optim.Adagrad([param]), param, "has no sparse dimension")
    wide = nn.Parameter(torch.ones(ROWS, COLUMNS, dtype=torch.complex64))
    wide.grad = sparse_gradient(wide, 0)
    assert_refused(fused_optim.Adagrad([wide]), wide, "view_as_real")


def test_a_complex_parameter_with_sgd():
    results = []
    for cls in (fused_optim.SGD, torch.optim.SGD):
        param = nn.Parameter(torch.ones(ROWS, COLUMNS, dtype=torch.complex64))
        param.grad = sparse_gradient(param, 0)
        cls([param], lr=0.1).step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


def test_stalled_elements_are_those_of_the_rows():
    param = nn.Parameter(torch.ones(ROWS, COLUMNS, dtype=torch.bfloat16))
    grad = torch.zeros_like(param).index_fill(0, torch.tensor([3]), 1e-3)
    param.grad = grad.to_sparse(1)
    optimizer = fused_optim.SGD([param], lr=1.0, count_stalled=True)
    with pytest.warns(UserWarning, match="100% of the elements did not move"):
        optimizer.step()
    assert optimizer.stalled == 1.0
