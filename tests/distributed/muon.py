"""Checks of Muon on DTensors: the updates of whole matrices, whatever their sharding."""

import contextlib
import math
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed.checkpoints import Model, copy_weights
from distributed.engines import shard_model
from distributed.layouts import (
    Twin,
    for_dims,
    list_formats,
    list_matrix_layouts,
    make_layouts,
    shard,
    take_local,
)
from distributed.norms import assert_on_all_ranks, make_model
from distributed.processes import World, covers
from distributed.updates import no_zeros_in_new_memory, raised, train
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import fused_optim
from fused_optim import Muon
from fused_optim.step.matrix_exchange import MatrixExchange

F64 = torch.float64
# uneven shards; an empty shard on the last ranks; wide; the same shape again
SHAPES = ((10, 12), (3, 20), (12, 5), (10, 12), (1, 4))
OPTIONS = {"lr": 0.1, "ns_dtype": F64, "backend": "reference"}
ONE_PROCESS = "Muon as one process"


def assert_close(what: str, twin: Twin, optimizers, tolerance: float = 1e-12) -> None:
    """Compare this rank's parameters and states of a twin with those parts of the plain ones."""
    one, other = optimizers
    row_dims = (one.param_groups[0]["batch_dims"] or 0) + 1
    for i, (param, sharded) in enumerate(zip(twin.whole, twin.sharded, strict=True)):
        mine = {"parameter": param, **one.state[param]}
        theirs = {"parameter": sharded, **other.state[sharded]}
        assert mine.keys() == theirs.keys(), what
        for name, value in mine.items():
            mesh, placements = twin.layouts[i]
            if name == "row_second_moment":
                placements = for_dims(placements, row_dims)
            assert theirs[name].placements == placements, (what, name, theirs[name].placements)
            torch.testing.assert_close(
                theirs[name].to_local().detach(),
                take_local(value.detach(), mesh, placements),
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, where=f"{what}, {name} of {i}": f"{where}: {m}",
            )


def compare(what: str, layouts, shapes=SHAPES, steps: int = 3, **options) -> Twin:
    """Take steps with a twin, and compare with one process."""
    twin = Twin(layouts, F64, shapes)
    optimizers = [Muon(params, **OPTIONS, **options) for params in (twin.whole, twin.sharded)]
    train(twin, optimizers, steps)
    assert optimizers[1]._engine.cache is not None
    assert_close(what, twin, optimizers)
    return twin


@contextlib.contextmanager
def count_exchanges():
    """Yield a list that takes the group and the bytes sent of each exchange."""
    exchanges = []
    exchange = dist.all_to_all_single

    def count(received, sent, *sizes, group):
        exchanges.append((group.group_name, sent.nbytes))
        return exchange(received, sent, *sizes, group=group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", count)
        yield exchanges


@covers("FSDP2, HSDP, TP", ONE_PROCESS)
def check_every_layout(world: World) -> None:
    for what, chosen in list_matrix_layouts(world):
        compare(what, chosen)
    options = {"adjust_lr_fn": "match_rms_adamw", "ns_max_batch": 1, "nesterov": False}
    compare("options", [make_layouts(world)["rows"]], **options)


@covers("FSDP2", ONE_PROCESS)
def check_one_to_three_ranks(world: World) -> None:
    for count in (1, 2, 3):
        mesh = world.parts[count]
        if mesh is not None:
            compare(f"{count} ranks", [(mesh, (Shard(0),))])


@covers("FSDP2, TP", ONE_PROCESS)
def check_blocks_of_parameters(world: World) -> None:
    """Convolutions, fused projections and heads are divided by rows of the whole parameter."""
    line = world.line
    for dim in (0, 1, 2):
        compare(f"filters, {dim}", [(line, (Shard(dim),))], ((6, 5, 3), (2, 3, 4)), batch_dims=0)
    for dim in (0, 1):
        layout = [(line, (Shard(dim),))]
        compare(f"split, {dim}", layout, ((14, 6),), split=(6, 4, 4), heads=2)


@covers("FSDP2, FSDP x TP", ONE_PROCESS)
def check_experts(world: World) -> None:
    """Nothing is sent where only the dims before those of a matrix are sharded."""
    shapes = ((6, 5, 4), (3, 4, 9))  # uneven and empty shards
    with count_exchanges() as exchanges:
        compare("experts", [(world.line, (Shard(0),))], shapes, batch_dims=1)
        compare("experts", [(world.square, (Shard(0), Shard(0)))], shapes, batch_dims=1)
        assert not exchanges, exchanges
        for inner in (1, 2):
            layout = (world.square, (Shard(0), Shard(inner)))
            compare("experts and rows", [layout], shapes, batch_dims=1)
        assert len(exchanges) == 2 * 2 * 3
    compare("rows of experts", [(world.line, (Shard(1),))], shapes, batch_dims=1)


def check_what_is_sent(world: World) -> None:
    """Two collectives for each process group and step, of this rank's bytes."""
    layouts = make_layouts(world)
    chosen = [layouts[name] for name in ("rows", "rows in replicas", "replicas")]
    twin = Twin(chosen, torch.float32, ((16, 8), (12, 16), (4, 4), (8, 4), (20, 4)))
    groups = [
        {"params": twin.sharded[:4]},
        {"params": twin.sharded[4:], "adjust_lr_fn": "match_rms_adamw", "momentum": 0.5},
    ]
    optimizer = Muon(groups, backend="reference")
    for cached in (False, True, True):
        twin.set_grads()
        assert (optimizer._engine.cache is not None) == cached
        with count_exchanges() as exchanges:
            optimizer.step()
        line, column = world.line.get_group(), world.square.get_group("shard")
        owned = dict(exchanges[1::2])
        assert [name for name, _ in exchanges[::2]] == sorted((line.group_name, column.group_name))
        assert [name for name, _ in exchanges[1::2]] == [name for name, _ in exchanges[::2]]
        # 4 bytes for each local element, of (16, 8) and (8, 4); of (12, 16) and (20, 4)
        local = {line.group_name: 4 * (128 + 32) // 4, column.group_name: 4 * (192 + 80) // 2}
        assert dict(exchanges[::2]) == local, (exchanges, local)
        # what comes back from a rank is what it has of whole matrices
        total = torch.tensor([owned[line.group_name]])
        dist.all_reduce(total)
        assert total == 4 * (128 + 32)
    estimate = fused_optim.memory(twin.sharded, Muon)
    assert estimate.states == sum(p.to_local().nbytes for p in twin.sharded)
    explained = optimizer.explain().rows
    shared = ["ranks share its matrices" in row.why for row in explained]
    assert shared == [True, True, False, True, True]
    assert {row.launch for row in explained} == {1, 2, 3, 4}
    assert len(optimizer._engine.bucket_keys) == 4


class Recorder(TorchDispatchMode):
    """Records the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def check_no_value_is_read(world: World) -> None:
    """The exchange waits for no device, so that a CUDA graph can capture it."""
    twin = Twin([make_layouts(world)["rows"]], shapes=SHAPES)
    optimizer = Muon(twin.sharded)
    run, mode = MatrixExchange.run, Recorder()

    def observe(exchange, directions):
        with mode:
            run(exchange, directions)

    twin.set_grads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MatrixExchange, "run", observe)
        optimizer.step()
    assert "alltoall_base_" in mode.called, mode.called
    assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "item"} & {*mode.called}


def check_the_work_is_shared(world: World) -> None:
    """Matrices of one shape are transformed by all ranks alike."""
    twin = Twin([make_layouts(world)["rows"]], shapes=4 * ((16, 16), (4, 8), (4, 8), (4, 8)))
    optimizer = Muon(twin.sharded)
    twin.set_grads()
    with count_exchanges() as exchanges:
        optimizer.step()
    assert exchanges[1][1] == 4 * (3 * 4 * 8 + 16 * 16)


def check_duplicates(world: World) -> None:
    """A parameter that a group has twice is exchanged twice."""
    twin = Twin([make_layouts(world)["rows"]], F64, SHAPES)
    with warnings.catch_warnings(action="ignore"):
        optimizers = [Muon([*p, p[0]], **OPTIONS) for p in (twin.whole, twin.sharded)]
    train(twin, optimizers, 2)
    assert_close("duplicates", twin, optimizers)


def make_groups(model):
    """Return the groups of a model: weights of Muon, biases of AdamW."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": weights}, {"params": biases, "algorithm": "adamw", "lr": 0.01}]


@covers("FSDP2, HSDP", ONE_PROCESS, "clipping by one norm")
def check_a_model(world: World) -> None:
    """One norm over both rules, in fully_shard and in one process."""
    batches = torch.randn(3, 4, 4, 16, dtype=F64, generator=torch.Generator().manual_seed(5))
    for mesh in (world.line, world.square):
        model, plain = shard_model(make_model().double(), mesh), make_model().double()
        options = {**OPTIONS, "max_grad_norm": 0.01, "ema_decay": 0.9}
        ours, one = (Muon(make_groups(m), **options) for m in (model, plain))
        for batch in batches:
            for own, optimizer, data in (
                (model, ours, batch[world.rank]),
                (plain, one, batch.flatten(0, 1)),
            ):
                optimizer.zero_grad()
                own(data).square().mean().backward()
                optimizer.step()
            assert one.clip_factor < 1.0
            assert math.isclose(ours.grad_norm.item(), one.grad_norm.item(), rel_tol=1e-12)
            assert_on_all_ranks("model", ours.grad_norm, ours.clip_factor)
        with ours.swap_ema(), one.swap_ema():
            assert_models_are_close(model, plain)
        assert_models_are_close(model, plain)


def assert_models_are_close(model, plain) -> None:
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(param.full_tensor(), other, rtol=1e-11, atol=1e-11)


@covers("FSDP2", ONE_PROCESS)
def check_step_in_backward(world: World) -> None:
    """Each parameter in an exchange of its own, and none in the step that completes them."""
    model, plain = shard_model(make_model().double(), world.line), make_model().double()
    ours, one = (Muon(make_groups(m), **OPTIONS) for m in (model, plain))
    data = torch.randn(4, 16, dtype=F64, generator=torch.Generator().manual_seed(5))
    with fused_optim.step_in_backward(model, ours), count_exchanges() as exchanges:
        for own, optimizer in 3 * ((model, ours), (plain, one)):
            own(data).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_models_are_close(model, plain)
    assert len(exchanges) == 3 * 2 * 3, exchanges
    # the first of three steps: each weight has another owner
    assert sum(nbytes > 0 for _, nbytes in exchanges[1:6:2]) == (world.rank < 3), exchanges


@covers("FSDP2, HSDP, TP", "storage formats")
def check_formats(world: World) -> None:
    """bf16 parameters with extra bits, kernels, stochastic rounding, states with scales."""
    for what, twin, given in list_formats(world):
        optimizers = [Muon(p, **{**OPTIONS, **given}) for p in (twin.whole, twin.sharded)]
        train(twin, optimizers)
        assert_same_formats(what, twin, optimizers)


def assert_same_formats(what: str, twin: Twin, optimizers) -> None:
    """Compare bits; the last bit of one element in a thousand may depend on the products."""
    one, other = optimizers
    for param, sharded, layout in zip(twin.whole, twin.sharded, twin.layouts, strict=True):
        theirs = {"parameter": sharded, **other.state[sharded]}
        for name, value in {"parameter": param, **one.state[param]}.items():
            if value.dim():
                local = theirs[name].to_local()
                wrong = (take_local(value.detach(), *layout) != local).double().mean()
                assert wrong < 1e-3, (what, name, wrong)


@no_zeros_in_new_memory()
def check_ranks_without_gradients(world: World) -> None:
    """Nobody waits for ever for a rank that has no gradient; what it lacks counts as 0."""
    twin = Twin([(world.line, (Shard(0),))], F64, ((8, 6), (8, 6)))
    optimizers = [Muon(p, **OPTIONS) for p in (twin.whole, twin.sharded)]
    for missing in ((), (0,), (0, 1), ()):
        train(twin, optimizers, 1, missing=missing)
        assert_close(f"without {missing}", twin, optimizers)
    idle = 1
    twin.set_grads()
    rows = slice(2 * idle, 2 * idle + 2)
    before = [param[rows].clone() for param in twin.whole]
    for param, sharded in zip(twin.whole, twin.sharded, strict=True):
        param.grad[rows] = optimizers[0].state[param]["momentum_buffer"][rows] = 0.0
        if world.rank == idle:
            sharded.grad = None
    for optimizer in optimizers:
        optimizer.step()
    for param, value, sharded in zip(twin.whole, before, twin.sharded, strict=True):
        expected = value if world.rank == idle else param[2 * world.rank :][:2]
        torch.testing.assert_close(sharded.to_local(), expected, rtol=1e-12, atol=1e-12)


@no_zeros_in_new_memory()
@covers("FSDP2", "skip on all ranks")
def check_skips(world: World) -> None:
    """One rank's NaN changes nothing on any rank, and later steps are as without it."""
    twin = Twin([make_layouts(world)["rows"]], F64, SHAPES)
    optimizers = [Muon(p, nonfinite="skip", **OPTIONS) for p in (twin.whole, twin.sharded)]
    train(twin, optimizers, 1)
    twin.set_grads()
    if world.rank == 1:
        twin.sharded[0].grad.to_local()[0, 0] = torch.nan
    optimizers[1].step()
    assert optimizers[1].skipped
    assert_close("skipped", twin, optimizers)
    train(twin, optimizers, 2)
    assert_close("after", twin, optimizers)


@covers("FSDP2, HSDP, TP", "checkpoints")
def check_checkpoints(world: World) -> None:
    """The momentum is resharded as the parameters are, and the run goes on."""
    layouts = make_layouts(world)
    twin = Twin([layouts["rows"]], F64, SHAPES)
    model = Model(twin.sharded)
    one, optimizer = Muon(twin.whole, **OPTIONS), Muon(model.parameters(), **OPTIONS)
    train(twin, [one, optimizer])
    path = world.folder / "muon"
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=path)
    placements = {
        "two": (world.square, (Replicate(), Shard(0))),
        "columns": layouts["columns"],
    }
    for name, layout in placements.items():
        copied = Twin([layout], F64, SHAPES)
        copy_weights(twin, copied)
        other = Model(copied.sharded)
        resumed = Muon(other.parameters(), **OPTIONS)
        template = get_optimizer_state_dict(other, resumed)
        dcp.load({"optimizer": template}, checkpoint_id=path)
        set_optimizer_state_dict(other, resumed, template)
        for param in copied.sharded:
            momentum = resumed.state[param]["momentum_buffer"]
            assert isinstance(momentum, DTensor)
            assert momentum.placements == param.placements
        before = [p.detach().clone() for p in twin.whole]
        momenta = [one.state[p]["momentum_buffer"].clone() for p in twin.whole]
        generator = twin.generator.get_state()
        copied.generator.set_state(generator)
        copied.whole = twin.whole
        train(copied, [one, resumed], 2)
        assert_close(name, copied, [one, resumed])
        with torch.no_grad():
            for param, value, momentum in zip(twin.whole, before, momenta, strict=True):
                param.copy_(value)
                one.state[param]["momentum_buffer"].copy_(momentum)


def check_what_is_refused(world: World) -> None:
    """Matrices of which a rank has no simple part; nothing is orthogonalized by parts."""
    layouts = make_layouts(world)
    for name in ("rows and columns", "rows twice", "strided"):
        param = Parameter(shard(torch.ones(8, 12), *layouts[name]))
        error = raised(ValueError, Muon, [("w", param)])
        assert "'w'" in error, error
        assert str(param.placements) in error, error
        assert "algorithm='adamw'" in error, error
        Muon([{"params": [("w", param)], "algorithm": "adamw"}])
    local = torch.ones(5 if world.rank == 0 else 1, 4)
    given = {"shape": torch.Size((8, 4)), "stride": (4, 1)}
    other = DTensor.from_local(local, world.line, [Shard(0)], run_check=False, **given)
    error = raised(ValueError, Muon, [("w", Parameter(other))])
    assert "'w'" in error, error
    assert f"got {len(local)}" in error, error
    flat = FullyShardedDataParallel(make_model(), use_orig_params=True, device_id="cpu")
    error = raised(ValueError, Muon, flat.parameters())
    assert "FSDP1" in error, error
