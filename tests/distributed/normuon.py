"""Checks of NorMuon on DTensors: the second moments of rows go with the matrices.

Faults tried by hand: moments that do not come back, that start anew in each step, that are written
in a skipped step, of another rank's rows, and the sum of the copies of ranks that share columns.
"""

import copy

import torch
import torch.distributed.checkpoint as dcp
from distributed.checkpoints import BROADCAST, FULL, Model, copy_weights
from distributed.engines import shard_model
from distributed.layouts import Twin, list_formats, list_matrix_layouts, make_layouts
from distributed.muon import (
    F64,
    ONE_PROCESS,
    OPTIONS,
    SHAPES,
    Recorder,
    assert_close,
    assert_same_formats,
    count_exchanges,
    make_groups,
)
from distributed.norms import make_model
from distributed.processes import World, covers
from distributed.updates import no_zeros_in_new_memory, raised, train
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import Replicate, Shard
from torch.nn import Parameter

import fused_optim
from fused_optim import Muon, NorMuon

TOLERANCE = 8 * torch.finfo(torch.float32).eps  # the moments of rows are in float32
MOMENT = "row_second_moment"


def make_both(twin: Twin, **options) -> list[NorMuon]:
    """Return an optimizer of the plain parameters, and one of the sharded ones."""
    return [NorMuon(params, **{**OPTIONS, **options}) for params in (twin.whole, twin.sharded)]


def compare(what: str, layouts, shapes=SHAPES, **options) -> None:
    """Take steps with a twin, and compare with one process."""
    twin = Twin(layouts, F64, shapes)
    optimizers = make_both(twin, **options)
    train(twin, optimizers, 3)
    assert optimizers[1]._engine.cache is not None
    assert_close(what, twin, optimizers, TOLERANCE)


@covers("FSDP2, HSDP, TP", ONE_PROCESS)
def check_every_layout(world: World) -> None:
    layouts = make_layouts(world)
    for what, chosen in list_matrix_layouts(world):
        compare(what, chosen)
    options = {"adjust_lr_fn": "original", "ns_max_batch": 1, "nesterov": False, "beta2": 0.5}
    compare("options", [layouts["rows"], layouts["columns"]], **options)
    if world.parts[3] is not None:
        compare("3 ranks", [(world.parts[3], (Shard(0),))])


@covers("FSDP2, TP, FSDP x TP", ONE_PROCESS)
def check_blocks_of_parameters(world: World) -> None:
    """Convolutions, fused projections and experts have moments for the rows of each matrix."""
    line, square = world.line, world.square
    for dim in (0, 1, 2):
        compare(f"filters, {dim}", [(line, (Shard(dim),))], ((6, 5, 3), (2, 3, 4)), batch_dims=0)
    for dim in (0, 1):
        layout = [(line, (Shard(dim),))]
        compare(f"split, {dim}", layout, ((14, 6),), split=(6, 4, 4), heads=2)
    experts = ((6, 5, 4), (3, 4, 9))  # uneven and empty shards
    with count_exchanges() as exchanges:
        compare("experts", [(line, (Shard(0),))], experts, batch_dims=1)
        compare("experts", [(square, (Shard(0), Shard(0)))], experts, batch_dims=1)
    assert not exchanges, exchanges
    for inner in (1, 2):
        compare(f"in experts, {inner}", [(line, (Shard(inner),))], experts, batch_dims=1)
        layout = [(square, (Shard(0), Shard(inner)))]
        compare(f"experts and {inner}", layout, experts, batch_dims=1)


def check_what_is_sent(world: World) -> None:
    """Two collectives for each process group, with 4 bytes more for each row; no value is read."""
    layouts = make_layouts(world)
    twin = Twin([layouts["rows"], layouts["columns"]], torch.float32, ((16, 8), (12, 16)))
    optimizers = [kind(twin.sharded, backend="reference") for kind in (Muon, NorMuon)]
    twin.set_grads()
    sent = []
    for optimizer in optimizers:
        with count_exchanges() as exchanges, Recorder() as mode:
            optimizer.step()
        assert "alltoall_base_" in mode.called, mode.called
        assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "item"} & {*mode.called}
        assert len(exchanges) == 2, exchanges
        sent.append(exchanges[0][1])
    # 4 of 16 rows; all 12 rows, of which a rank has columns
    assert sent[1] == sent[0] + 4 * (4 + 12), sent
    estimates = [fused_optim.memory(twin.sharded, kind).states for kind in (Muon, NorMuon)]
    assert estimates[1] == estimates[0] + 4 * (4 + 12), estimates


@no_zeros_in_new_memory()
def check_ranks_without_gradients(world: World) -> None:
    """A rank without a gradient keeps its values; the others go on, and copies become equal."""
    twin = Twin([(world.line, (Shard(0),)), (world.line, (Shard(1),))], F64, ((8, 8), (8, 8)))
    optimizers = make_both(twin)
    for idle in (3, None):
        twin.set_grads()
        before = copy.deepcopy([optimizers[1].state[p] for p in twin.sharded])
        if idle is not None:
            twin.whole[0].grad[2 * idle :] = 0.0
            twin.whole[1].grad[:, 2 * idle :] = 0.0
            if world.rank == idle:
                for param in twin.sharded:
                    param.grad = None
        for optimizer in optimizers:
            optimizer.step()
        if world.rank == idle:
            assert not any(before)
            assert not any(optimizers[1].state[p] for p in twin.sharded)
    assert_moments_are_close(twin, optimizers)
    train(twin, optimizers, 2)
    assert_moments_are_close(twin, optimizers)


def assert_moments_are_close(twin: Twin, optimizers) -> None:
    """Compare moments only: a parameter without a gradient has no weight decay."""
    one, other = optimizers
    for param, sharded in zip(twin.whole, twin.sharded, strict=True):
        moment = other.state[sharded][MOMENT]
        expected = one.state[param][MOMENT]
        torch.testing.assert_close(moment.full_tensor(), expected, rtol=TOLERANCE, atol=TOLERANCE)


@no_zeros_in_new_memory()
@covers("FSDP2, TP", "skip on all ranks")
def check_skips(world: World) -> None:
    """One rank's NaN changes no moment on any rank, and later steps are as without it."""
    layouts = make_layouts(world)
    twin = Twin([layouts["rows"], layouts["columns"]], F64, SHAPES)
    optimizers = make_both(twin, nonfinite="skip")
    train(twin, optimizers, 1)
    before = [optimizers[1].state[p][MOMENT].to_local().clone() for p in twin.sharded]
    twin.set_grads()
    if world.rank == 1:
        for param in twin.sharded:
            param.grad.to_local().fill_(torch.nan)
    optimizers[1].step()
    assert optimizers[1].skipped
    for param, value in zip(twin.sharded, before, strict=True):
        assert torch.equal(optimizers[1].state[param][MOMENT].to_local(), value)
    train(twin, optimizers, 2)
    assert_close("after", twin, optimizers, TOLERANCE)


@covers("FSDP2, HSDP", ONE_PROCESS, "clipping by one norm")
def check_a_model(world: World) -> None:
    """Steps, and steps in backward, of fully_shard as those of one process."""
    data = torch.randn(4, 16, dtype=F64, generator=torch.Generator().manual_seed(5))
    for mesh in (world.line, world.square):
        model, plain = shard_model(make_model().double(), mesh), make_model().double()
        options = {**OPTIONS, "max_grad_norm": 0.01}
        ours, one = (NorMuon(make_groups(m), **options) for m in (model, plain))
        for own, optimizer in 3 * ((model, ours), (plain, one)):
            optimizer.zero_grad()
            own(data).square().mean().backward()
            optimizer.step()
        assert_models_are_close(model, plain)
        for optimizer in (ours, one):
            optimizer.max_grad_norm = None
        with fused_optim.step_in_backward(model, ours):
            for own, optimizer in 2 * ((model, ours), (plain, one)):
                optimizer.zero_grad()
                own(data).square().mean().backward()
                optimizer.step()
        assert_models_are_close(model, plain)


def assert_models_are_close(model, plain) -> None:
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(param.full_tensor(), other, rtol=TOLERANCE, atol=TOLERANCE)


@covers("FSDP2, HSDP, TP", "storage formats")
def check_formats(world: World) -> None:
    """Formats of weights and states, which leave the moments in float32."""
    for what, twin, given in list_formats(world):
        optimizers = make_both(twin, **given)
        train(twin, optimizers)
        moments = [one.state[p].pop(MOMENT) for one, p in all_params(twin, optimizers)]
        assert all(moment.dtype == torch.float32 for moment in moments)
        assert_same_formats(what, twin, optimizers)


def all_params(twin: Twin, optimizers):
    """Yield each optimizer with each of its parameters."""
    for optimizer, params in zip(optimizers, (twin.whole, twin.sharded), strict=True):
        for param in params:
            yield optimizer, param


@covers("FSDP2, HSDP, TP", "checkpoints")
def check_checkpoints(world: World) -> None:
    """The moments are resharded with the rows, and the run goes on in every layout."""
    layouts = make_layouts(world)
    for source in ("rows", "columns"):
        twin = Twin([layouts[source]], F64, SHAPES)
        model = Model(twin.sharded)
        one, optimizer = NorMuon(twin.whole, **OPTIONS), NorMuon(model.parameters(), **OPTIONS)
        train(twin, [one, optimizer])
        path = world.folder / f"normuon-{source}"
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=path)
        optimizer.param_groups[0]["ns_dtype"] = None  # gathering refuses a dtype as an option
        gathered = get_optimizer_state_dict(model, optimizer, options=FULL)
        for target in ("rows", "rows in replicas", "columns", "replicas"):
            copied = Twin([layouts[target]], F64, SHAPES)
            copy_weights(twin, copied)
            other = Model(copied.sharded)
            resumed = NorMuon(other.parameters(), **OPTIONS)
            template = get_optimizer_state_dict(other, resumed)
            dcp.load({"optimizer": template}, checkpoint_id=path)
            set_optimizer_state_dict(other, resumed, template)
            resume(f"{source} to {target}", twin, copied, [one, resumed])
        alone = Model([Parameter(param.detach().clone()) for param in twin.whole])
        single = NorMuon(alone.parameters(), **{**OPTIONS, "ns_dtype": None})
        set_optimizer_state_dict(alone, single, copy.deepcopy(gathered), options=FULL)
        for param, whole in zip(alone.parameters(), twin.whole, strict=True):
            moments = [o.state[p][MOMENT] for o, p in ((single, param), (one, whole))]
            torch.testing.assert_close(*moments, rtol=TOLERANCE, atol=TOLERANCE)
        again = Twin([layouts["rows"]], F64, SHAPES)
        copy_weights(twin, again)
        other = Model(again.sharded)
        resumed = NorMuon(other.parameters(), **OPTIONS)
        resumed.param_groups[0]["ns_dtype"] = None
        set_optimizer_state_dict(other, resumed, gathered, options=BROADCAST)
        resumed.param_groups[0]["ns_dtype"] = F64
        resume(f"{source}, gathered", twin, again, [one, resumed])
        resumed.load_state_dict(copy.deepcopy(resumed.state_dict()))
        train(again, [resumed], 1)


def resume(what: str, twin: Twin, copied: Twin, optimizers) -> None:
    """Compare two more steps of both; the plain parameters and states are set back."""
    plain = optimizers[0]
    params = [p.detach().clone() for p in twin.whole]
    states = copy.deepcopy([plain.state[p] for p in twin.whole])
    copied.generator.set_state(twin.generator.get_state())
    copied.whole = [Parameter(value) for value in params]
    one = NorMuon(copied.whole, **OPTIONS)
    for param, state in zip(copied.whole, states, strict=True):
        one.state[param] = state
    train(copied, [one, optimizers[1]], 2)
    assert_close(what, copied, [one, optimizers[1]], TOLERANCE)


def check_misplaced_moments(world: World) -> None:
    """Refused by name, before anything is changed."""
    twin = Twin([make_layouts(world)["columns"]], F64, SHAPES)
    optimizer = NorMuon([(f"w{i}", p) for i, p in enumerate(twin.sharded)], **OPTIONS)
    train(twin, [optimizer], 1)
    state = optimizer.state[twin.sharded[0]]
    moment = state[MOMENT]
    assert moment.placements == (Replicate(),)
    for wrong in (moment.to_local().clone(), moment.redistribute(placements=[Shard(0)])):
        state[MOMENT] = wrong
        twin.set_grads()
        error = raised(ValueError, optimizer.step)
        assert f"{MOMENT!r} of the parameter 'w0'" in error, error
        assert "placements (Replicate(),)" in error, error
