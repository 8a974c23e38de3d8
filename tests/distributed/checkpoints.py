"""Checks of checkpoints: across numbers of shards, engines, and to and from torch.optim."""

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed.layouts import Twin, assert_same_bits, make_layouts, take_local
from distributed.processes import World, covers
from distributed.updates import BF16, raised, train
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Module, Parameter

import fused_optim

SHAPES = ((130, 64), (24, 256), (7,))
FORMATS: tuple[dict[str, Any], ...] = (
    {},
    {"weights": "split", "states": "bf16"},
    {"weights": "split24", "states": "fp8"},
    {"weights": "kahan", "states": "int8", "ema_decay": 0.9},
    {"weights": "master", "states": "fp32", "max_grad_norm": 0.5},
)
FULL = StateDictOptions(full_state_dict=True)
BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Model(Module):
    """A model that has the parameters of a twin."""

    def __init__(self, params) -> None:
        super().__init__()
        for i, param in enumerate(params):
            self.register_parameter(f"p{i}", param)


def make(layout, optimizer_class, dtype=BF16, **options):
    """Return a twin, its sharded model and an optimizer of it."""
    twin = Twin([layout], dtype, SHAPES)
    model = Model(twin.sharded)
    return twin, model, optimizer_class(model.parameters(), **{"lr": 0.01, **options})


def copy_weights(source: Twin, target: Twin) -> None:
    """Write the weights of ``source``, gathered, to ``target``."""
    with torch.no_grad():
        for param, other, layout in zip(
            source.sharded, target.sharded, target.layouts, strict=True
        ):
            other.to_local().copy_(take_local(param.full_tensor(), *layout))


def step_both(twin: Twin, copied: Twin, optimizers, steps: int) -> None:
    """Take steps of two optimizers, whose parameters have the same gradients and placements."""
    for _ in range(steps):
        twin.set_grads()
        for param, source in zip(copied.sharded, twin.sharded, strict=True):
            param.grad = source.grad
        for optimizer in optimizers:
            optimizer.step()


def assert_same_states(what, one, other, twin: Twin, copied: Twin) -> None:
    """Assert equal bits of two optimizers whose parameters are sharded differently."""
    for i, (param, twin_param) in enumerate(zip(twin.sharded, copied.sharded, strict=True)):
        mine, theirs = one.state[param], other.state[twin_param]
        assert mine.keys() == theirs.keys(), what
        for name, value in mine.items():
            if not isinstance(value, DTensor):
                assert torch.equal(value, theirs[name]), (what, name)
                continue
            full = _gather_bits(value)
            assert_same_bits(f"{what}, {name} of {i}", theirs[name], full, copied.layouts[i])


def _gather_bits(value: DTensor) -> torch.Tensor:
    """Return the whole of a DTensor, of a dtype that gloo may refuse."""
    local = value.to_local()
    portable = {2: BF16}.get(local.itemsize, local.dtype)
    portable = torch.uint8 if local.itemsize == 1 else portable
    viewed = DTensor.from_local(
        local.view(portable),
        value.device_mesh,
        value.placements,
        run_check=False,
        shape=value.shape,
        stride=value.stride(),
    )
    return viewed.full_tensor().view(local.dtype)


@covers("FSDP2, HSDP", "checkpoints")
def check_resharding(world: World) -> None:
    """From four shards to two, to one and to four of another mesh, bit for bit."""
    layouts = make_layouts(world)
    targets = ("rows in replicas", "replicas", "rows twice")
    for n, options in enumerate(FORMATS):
        seeded = {**options, "seed": 3, "backend": "reference"}
        twin, model, optimizer = make(layouts["rows"], fused_optim.AdamW, **seeded)
        train(twin, [optimizer])
        for flat in (False, True) if n == 0 else (n % 2 == 0,):
            chosen = StateDictOptions(flatten_optimizer_state_dict=flat)
            saved = get_optimizer_state_dict(model, optimizer, options=chosen)
            path = world.folder / f"reshard-{n}-{flat}"
            dcp.save({"optimizer": saved}, checkpoint_id=path)
            # a target concerns indices and not values: each for the first format, then in turn
            for name in targets if n == 0 else targets[n % 3 :][:1]:
                copied, other, resumed = make(layouts[name], fused_optim.AdamW, **seeded)
                copy_weights(twin, copied)
                template = get_optimizer_state_dict(other, resumed, options=chosen)
                dcp.load({"optimizer": template}, checkpoint_id=path)
                set_optimizer_state_dict(other, resumed, template, options=chosen)
                assert_same_states(f"{options}, {name}", optimizer, resumed, twin, copied)
        # the run goes on with the same bits, those of stochastic rounding included
        if "max_grad_norm" not in options:  # whose sum over other shards rounds otherwise
            copied.generator.set_state(twin.generator.get_state())
            train(twin, [optimizer], 2)
            train(copied, [resumed], 2)
            assert_same_states(f"{options}, after", optimizer, resumed, twin, copied)


@covers("FSDP2", "checkpoints")
def check_resharding_to_three(world: World) -> None:
    """From four ranks to three, with uneven shards."""
    twin, model, optimizer = make(
        (world.line, (Shard(0),)), fused_optim.AdamW, states="int8", weights="split", seed=3
    )
    del twin.sharded[2], twin.whole[2], twin.layouts[2]
    model = Model(twin.sharded)
    optimizer = fused_optim.AdamW(model.parameters(), states="int8", weights="split")
    train(twin, [optimizer])
    path = world.folder / "three"
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=path)
    bits = [
        {name: _gather_bits(v) for name, v in optimizer.state[p].items() if v.dim()}
        for p in twin.sharded
    ]
    mesh = world.parts[3]
    if mesh is None:
        return
    copied = Twin([(mesh, (Shard(0),))], BF16, SHAPES[:2])
    other = Model(copied.sharded)
    resumed = fused_optim.AdamW(other.parameters(), states="int8", weights="split")
    template = get_optimizer_state_dict(other, resumed)
    dcp.load({"optimizer": template}, checkpoint_id=path, process_group=mesh.get_group())
    set_optimizer_state_dict(other, resumed, template)
    for param, expected, layout in zip(copied.sharded, bits, copied.layouts, strict=True):
        for name, value in expected.items():
            assert_same_bits(f"three, {name}", resumed.state[param][name], value, layout)


@covers("FSDP2, FSDP x TP", "checkpoints")
def check_full_state_dict(world: World) -> None:
    """Gathered on rank 0, broadcast to other optimizers, also with formats."""
    layouts = make_layouts(world)
    for options in FORMATS:
        twin, model, optimizer = make(layouts["rows"], fused_optim.AdamW, **options)
        train(twin, [optimizer])
        cpu = StateDictOptions(full_state_dict=True, cpu_offload=True)
        saved = get_optimizer_state_dict(model, optimizer, options=cpu)
        if world.rank == 0:
            for state in saved["state"].values():
                assert not any(isinstance(value, DTensor) for value in state.values())
                shape = tuple(state["exp_avg"].shape)
                assert shape in SHAPES or shape[:-1] in SHAPES  # codes have one more dim
        scaled = options.get("states") in ("int8", "fp8")
        name = "rows twice" if scaled else "rows and columns"
        copied, other, resumed = make(layouts[name], fused_optim.AdamW, **options)
        set_optimizer_state_dict(other, resumed, saved, options=BROADCAST)
        assert_same_states(f"full, {options}", optimizer, resumed, twin, copied)
        train(copied, [resumed])  # two live optimizers do not count each other's steps
        assert optimizer.state[twin.sharded[0]]["step"] == 3


def check_the_bound_travels(world: World) -> None:
    layout = make_layouts(world)["rows"]
    twin, model, optimizer = make(layout, fused_optim.AdamW, torch.float32, max_grad_norm=0.5)
    train(twin, [optimizer])
    path = world.folder / "bound"
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=path)
    _, other, resumed = make(layout, fused_optim.AdamW, torch.float32, max_grad_norm=7.0)
    template = get_optimizer_state_dict(other, resumed)
    dcp.load({"optimizer": template}, checkpoint_id=path)
    set_optimizer_state_dict(other, resumed, template)
    assert resumed.max_grad_norm == 0.5
    saved = get_optimizer_state_dict(model, optimizer, options=FULL)
    if world.rank == 0:
        assert saved["param_groups"][0]["max_grad_norm"] == 0.5
        assert "l1" not in saved["param_groups"][0]


def check_a_change_of_format(world: World) -> None:
    """Load in the format of the checkpoint, then change the option of the group."""
    layout = make_layouts(world)["rows"]
    twin, model, optimizer = make(layout, fused_optim.AdamW, weights="split", states="fp32")
    train(twin, [optimizer])
    copied, other, resumed = make(layout, fused_optim.AdamW, weights="split", states="fp32")
    copy_weights(twin, copied)
    saved = get_optimizer_state_dict(model, optimizer, options=FULL)
    set_optimizer_state_dict(other, resumed, saved, options=BROADCAST)
    for one in (optimizer, resumed):
        one.param_groups[0].update(weights="master", states="bf16")
    step_both(twin, copied, (optimizer, resumed), 2)
    assert {str(v.dtype) for v in resumed.state[copied.sharded[0]].values() if v.dim()} == {
        "torch.bfloat16",
        "torch.float32",
    }
    assert_same_states("format", optimizer, resumed, twin, copied)


def check_old_checkpoints(world: World) -> None:
    """Scales of a plain tensor had one dim in older checkpoints."""
    if world.rank:
        return
    param = Parameter(torch.randn(130, 64))
    optimizer = fused_optim.AdamW([param], states="int8", backend="reference")
    param.grad = torch.randn(130, 64)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["exp_avg_scale"].shape == (130, 1)
    other = Parameter(param.detach().clone())
    resumed = fused_optim.AdamW([other], states="int8", backend="reference")
    for name in ("exp_avg_scale", "exp_avg_sq_scale"):
        saved["state"][0][name] = saved["state"][0][name].flatten()
    resumed.load_state_dict(saved)
    for p, o in ((param, optimizer), (other, resumed)):
        p.grad = param.grad.clone()
        o.step()
    for name, value in optimizer.state[param].items():
        loaded = resumed.state[other][name]
        assert loaded.shape == value.shape, name
        assert torch.equal(loaded, value), name


def check_bits_are_no_numbers(world: World) -> None:
    """A checkpoint of another format is refused, not read as numbers or as other bits."""
    layout = make_layouts(world)["rows"]
    formats = (
        {"states": "int8"},
        {"states": "fp32"},
        {"states": "bf16", "weights": "split"},
        {"states": "bf16", "weights": "split24"},
    )
    for n, options in enumerate(formats):
        twin, model, optimizer = make(layout, fused_optim.AdamW, **options)
        train(twin, [optimizer])
        path = world.folder / f"bits-{n}"
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=path)
        for other_options in formats:
            # the bits of a plain weight are those of any; numbers are converted
            both = {*options.values(), *other_options.values()}
            if other_options == options or not ("int8" in both or {"split", "split24"} <= both):
                continue
            _, other, resumed = make(layout, fused_optim.AdamW, **other_options)
            template = get_optimizer_state_dict(other, resumed)
            saved = {"optimizer": template}
            error = raised(CheckpointException, dcp.load, saved, checkpoint_id=path)
            assert "ize mismatch" in error or "Missing key" in error, error


@covers("ZeRO", "checkpoints", "storage formats")
def check_zero_loads_formats(world: World) -> None:
    """ZeroRedundancyOptimizer assigns the states of a checkpoint, without our method."""
    for options in ({"weights": "split", "states": "fp8"}, {"weights": "split24"}):
        given = {"optimizer_class": fused_optim.AdamW, "lr": 0.1, **options}
        torch.manual_seed(0)
        start = [torch.randn(shape).bfloat16() for shape in SHAPES]
        runs = []
        for _ in range(2):
            params = [Parameter(value.clone()) for value in start]
            runs.append((params, ZeroRedundancyOptimizer(params, **given)))
        (params, optimizer), (others, resumed) = runs
        for step in range(4):
            for param, other in zip(params, others, strict=True):
                param.grad = other.grad = torch.full_like(param, 0.5 + step)
            optimizer.step()
            if step >= 2:
                resumed.step()
            if step == 1:
                optimizer.consolidate_state_dict(0)
                saved = [optimizer.state_dict() if world.rank == 0 else None]
                dist.broadcast_object_list(saved, 0)
                with torch.no_grad():
                    for param, other in zip(params, others, strict=True):
                        other.copy_(param)
                resumed.load_state_dict(copy.deepcopy(saved[0]))
        for param, other in zip(params, others, strict=True):
            assert torch.equal(param, other), options


def check_misplaced_states(world: World) -> None:
    layouts = make_layouts(world)
    twin, _, optimizer = make(layouts["rows"], fused_optim.AdamW, torch.float32)
    train(twin, [optimizer])
    state = optimizer.state[twin.sharded[0]]
    whole = state["exp_avg"].full_tensor()
    for wrong in (whole, state["exp_avg"].redistribute(placements=[Replicate()])):
        state["exp_avg"] = wrong
        twin.set_grads()
        before = twin.sharded[1].to_local().clone()
        error = raised(ValueError, optimizer.step)
        assert "'exp_avg'" in error, error
        assert "set_optimizer_state_dict" in error, error
        assert torch.equal(before, twin.sharded[1].to_local())


@covers("FSDP2", "checkpoints")
def check_async_save(world: World) -> None:
    """Steps during the save do not change what is saved."""
    layout = make_layouts(world)["rows"]
    twin, model, optimizer = make(layout, fused_optim.AdamW, weights="split", states="fp8")
    train(twin, [optimizer])
    expected = [p.full_tensor().detach().clone() for p in twin.sharded]
    states = [
        {k: _gather_bits(v).clone() for k, v in optimizer.state[p].items() if v.dim()}
        for p in twin.sharded
    ]
    path = world.folder / "async"
    saved = {"model": dict(model.named_parameters())}
    saved["optimizer"] = get_optimizer_state_dict(model, optimizer)
    future = dcp.async_save(saved, checkpoint_id=path)
    train(twin, [optimizer], 2)
    future.result()
    copied, other, resumed = make(layout, fused_optim.AdamW, weights="split", states="fp8")
    template = {"model": dict(other.named_parameters())}
    template["optimizer"] = get_optimizer_state_dict(other, resumed)
    dcp.load(template, checkpoint_id=path)
    set_optimizer_state_dict(other, resumed, template["optimizer"])
    for i, (param, value) in enumerate(zip(copied.sharded, expected, strict=True)):
        assert_same_bits("async", param, value, copied.layouts[i])
        for name, state in states[i].items():
            where = resumed.state[param][name]
            assert_same_bits(f"async, {name}", where, state, copied.layouts[i])
