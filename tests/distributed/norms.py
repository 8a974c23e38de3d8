"""Checks of the norm, of skips and of sums over tensors: right, and the same bits on every rank."""

import math

import torch
import torch.distributed as dist
from distributed.layouts import Twin, make_layouts
from distributed.processes import World, covers
from distributed.updates import REDUCED, raised, train
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import Linear, Parameter, Sequential
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import fused_optim
from fused_optim.testing.cases import ONE_PER_CLASS


def assert_on_all_ranks(what: str, *values) -> None:
    """Assert that 0-dim results have the same bits on every rank."""
    mine = torch.stack([value.double() for value in values]).view(torch.int64)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    assert all(torch.equal(mine, other) for other in every), (what, every)


def assert_results(what: str, optimizer, norm: float, max_norm: float) -> None:
    """Assert norm and factor, within rounding, and the same on every rank."""
    assert math.isclose(optimizer.grad_norm.item(), norm, rel_tol=1e-6), (what, optimizer.grad_norm)
    factor = min(1.0, max_norm / (norm + 1e-6))
    assert math.isclose(optimizer.clip_factor.item(), factor, rel_tol=1e-6), what
    assert_on_all_ranks(what, optimizer.grad_norm, optimizer.clip_factor, optimizer.skipped)


@covers("FSDP2, HSDP, TP, FSDP x TP", "clipping by one norm")
def check_clipping_in_every_layout(world: World) -> None:
    layouts = make_layouts(world)
    for name, chosen in {
        **{n: [x] for n, x in layouts.items()},
        "all": [*layouts.values()],
    }.items():
        for backend in ("reference", "native") if name in ("strided", "all") else ("reference",):
            twin = Twin(chosen)
            optimizer = fused_optim.SGD(twin.sharded, lr=0.5, max_grad_norm=0.7, backend=backend)
            copies = [Parameter(p.detach().clone()) for p in twin.sharded]
            theirs = torch.optim.SGD(copies, lr=0.5)
            for _ in range(3):
                twin.set_grads()
                for copy, param in zip(copies, twin.sharded, strict=True):
                    copy.grad = param.grad.detach().clone()
                optimizer.step()
                whole = torch.cat([p.grad.double().flatten() for p in twin.whole]).norm().item()
                assert_results(name, optimizer, whole, 0.7)
                torchs = 0.0
                if len(chosen) == 1:  # torch refuses DTensors of several meshes in one call
                    torchs = clip_grad_norm_(copies, 0.7).full_tensor().item()
                    assert math.isclose(torchs, optimizer.grad_norm.item(), rel_tol=1e-5), name
                    theirs.step()
            if len(chosen) == 1:
                for copy, param in zip(copies, twin.sharded, strict=True):
                    torch.testing.assert_close(
                        param.to_local(), copy.to_local(), rtol=1e-5, atol=1e-6
                    )


@covers("FSDP2", "clipping by one norm")
def check_ranks_without_gradients(world: World) -> None:
    """One rank has no gradient, in some steps no rank has one: nobody waits for ever."""
    twin = Twin([make_layouts(world)["rows"]])
    optimizer = fused_optim.SGD(twin.sharded, lr=0.5, max_grad_norm=0.5)
    for idle in (None, 1, 0, None):
        twin.set_grads()
        if world.rank == idle:
            for param in twin.sharded:
                param.grad = None
        optimizer.step()
        parts = [
            p.grad.to_local().double().square().sum() for p in twin.sharded if p.grad is not None
        ]
        total = sum(parts, torch.zeros((), dtype=torch.float64))
        dist.all_reduce(total)
        assert_results(f"idle {idle}", optimizer, total.sqrt().item(), 0.5)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.grad_norm == 0.0
    assert optimizer.clip_factor == 1.0
    assert not optimizer.skipped


@covers("pipeline", "clipping by one norm")
def check_norm_group(world: World) -> None:
    """Pipeline stages: every rank has other parameters; one rank has none."""
    params = [Parameter(torch.ones(world.rank + 1)) for _ in range(3)] if world.rank else []
    groups = [{"params": params}]
    optimizer = fused_optim.SGD(groups, lr=1.0, max_grad_norm=1.0, norm_group=dist.group.WORLD)
    for _ in range(3):
        for param in params:
            param.grad = torch.full_like(param, 2.0)
        optimizer.step()
        assert_results("stages", optimizer, 2.0 * math.sqrt(3 * (2 + 3 + 4)), 1.0)
    error = raised(
        TypeError, fused_optim.SGD, params or [torch.ones(1)], lr=1.0, norm_group="world"
    )
    assert "norm_group must be a torch.distributed.ProcessGroup" in error, error
    optimizer.norm_group = None
    optimizer.step()
    assert math.isclose(optimizer.grad_norm.item(), 2.0 * math.sqrt(len(params) * (world.rank + 1)))


@covers("pipeline, FSDP2", "clipping by one norm")
def check_norm_group_with_dtensors(world: World) -> None:
    """Two stages, each sharded over two ranks: every element counts once."""
    shards, stages = world.square["shard"], world.square.get_group("replicate")
    twin = Twin([(shards, make_layouts(world)["rows"][1])])
    optimizer = fused_optim.SGD(twin.sharded, lr=1.0, max_grad_norm=1.0, norm_group=stages)
    for _ in range(2):
        twin.set_grads()  # the same in both stages
        optimizer.step()
        whole = torch.cat([p.grad.double().flatten() for p in twin.whole]).norm().item()
        assert_results("stages of shards", optimizer, math.sqrt(2) * whole, 1.0)


@covers("FSDP2", "skip on all ranks")
def check_skips_together(world: World) -> None:
    """One rank's Inf or NaN skips the step on all."""
    layouts = make_layouts(world)
    for bad in (math.inf, -math.inf, math.nan):
        for culprit in (0, 3):
            for backend in ("reference", "native"):
                twin = Twin([layouts["rows"]], shapes=((8, 64), (12, 64)))
                given = {"lr": 0.5, "nonfinite": "skip", "backend": backend}
                optimizer = fused_optim.AdamW(twin.sharded, **given)
                twin.set_grads()
                optimizer.step()
                before = [p.to_local().clone() for p in twin.sharded]
                twin.set_grads()
                if world.rank == culprit:
                    twin.sharded[1].grad.to_local()[0, 3] = bad
                optimizer.step()
                assert optimizer.skipped, (bad, culprit)
                assert_on_all_ranks("skip", optimizer.skipped)
                for param, old in zip(twin.sharded, before, strict=True):
                    assert torch.equal(param.to_local(), old)
                    assert optimizer.state[param]["step"] == 1
                twin.set_grads()
                optimizer.step()
                assert not optimizer.skipped


@covers("FSDP2", "skip on all ranks")
def check_found_inf_together(world: World) -> None:
    """A scaler that found an Inf on one rank skips the step on all, with or without a norm."""
    for given in ({"fused": True}, {"max_grad_norm": 1.0}):
        twin = Twin([make_layouts(world)["rows"]])
        optimizer = fused_optim.AdamW(twin.sharded, lr=0.5, **given)
        for culprit in (None, 2, None):
            twin.set_grads(scale=4.0)
            before = [p.to_local().clone() for p in twin.sharded]
            optimizer.grad_scale = torch.tensor([4.0])
            optimizer.found_inf = torch.tensor([1.0 if world.rank == culprit else 0.0])
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
            assert bool(optimizer.skipped) == (culprit is not None)
            if culprit is not None:
                for param, old in zip(twin.sharded, before, strict=True):
                    assert torch.equal(param.to_local(), old)


@covers("FSDP2", "skip on all ranks")
def check_grad_scaler(world: World) -> None:
    twin = Twin([make_layouts(world)["rows"]], shapes=((8, 64), (12, 64)))
    optimizer = fused_optim.SGD(twin.sharded, lr=0.5, max_grad_norm=1.0)
    # torch.amp.GradScaler adapts its scale on each rank alone
    scaler = ShardedGradScaler("cpu", init_scale=256.0, growth_interval=10)
    for culprit in (None, 1, None):
        loss = scaler.scale(twin.sharded[0].sum() + 2 * twin.sharded[1].sum())
        optimizer.zero_grad()
        loss.backward()
        if world.rank == culprit:
            twin.sharded[0].grad.to_local()[0, 0] = math.inf
        before = [p.to_local().clone() for p in twin.sharded]
        scaler.unscale_(optimizer)  # where this scaler tells all ranks
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(p.to_local(), b) for p, b in zip(twin.sharded, before, strict=True))
        assert same == (culprit is not None), culprit
        if culprit is None:
            assert_results("scaler", optimizer, math.sqrt(8 * 64 + 4 * 12 * 64), 1.0)


@covers("FSDP2, TP, FSDP x TP", "LAMB, LARS, StableAdamW")
def check_sums_over_shards(world: World) -> None:
    layouts = make_layouts(world)
    for case in (c for c in ONE_PER_CLASS if c.class_name in REDUCED):
        for name in ("rows", "rows and columns", "replicas"):
            for backend in ("reference", "native"):
                twin = Twin([layouts[name]])
                given = {**case.options, **case.additions, "backend": backend}
                optimizers = [case.fused(params, **given) for params in (twin.whole, twin.sharded)]
                train(twin, optimizers)
                train(twin, optimizers, 1, missing=(1,))
                for param, whole in zip(twin.sharded, twin.whole, strict=True):
                    full = param.full_tensor()
                    torch.testing.assert_close(full, whole.data, rtol=3e-6, atol=1e-6)


def check_sums_of_ranks_without_gradients(world: World) -> None:
    twin = Twin([make_layouts(world)["rows"]])
    optimizer = fused_optim.LAMB(twin.sharded, lr=0.1)
    for idle in (None, 1, 0):
        twin.set_grads()
        if world.rank == idle:
            for param in twin.sharded:
                param.grad = None
        optimizer.step()


def make_model() -> Sequential:
    """Return a model with the same weights on every rank."""
    torch.manual_seed(3)
    return Sequential(Linear(16, 24), Linear(24, 8), Linear(8, 4))


def backward(model, rank: int, steps: int = 1) -> None:
    """Backpropagate a batch that differs between ranks."""
    generator = torch.Generator().manual_seed(10 * steps + rank)
    (10 * model(torch.randn(4, 16, generator=generator)).square().mean()).backward()


def expected_norm(steps: int) -> float:
    """Return the norm of the mean gradient over all ranks, from one process."""
    model = make_model()
    for rank in range(4):
        backward(model, rank, steps)
    return torch.cat([p.grad.double().flatten() / 4 for p in model.parameters()]).norm().item()


@covers("FSDP1", "clipping by one norm")
def check_fsdp1(world: World) -> None:
    for original in (False, True):
        model = FullyShardedDataParallel(
            make_model(), device_id=torch.device("cpu"), use_orig_params=original
        )
        optimizer = fused_optim.SGD(model.parameters(), lr=1e-3, max_grad_norm=0.1)
        backward(model, world.rank)
        if not original:
            error = raised(ValueError, optimizer.step)
            assert "norm_group must be the process group" in error, error
            assert "FSDP1" in error, error
        optimizer.norm_group = dist.group.WORLD
        optimizer.step()
        assert_results("FSDP1", optimizer, expected_norm(1), 0.1)


def check_rules_that_need_whole_tensors(world: World) -> None:
    """FSDP1 flattens what LAMB needs the norm of."""
    model = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"))
    optimizer = fused_optim.LAMB(model.parameters())
    backward(model, world.rank)
    error = raised(ValueError, optimizer.step)
    assert "use FSDP2" in error, error


def check_group_of_a_group(world: World) -> None:
    groups = [{"params": [Parameter(torch.ones(2))], "norm_group": dist.group.WORLD}]
    error = raised(ValueError, fused_optim.AdamW, groups)
    assert "give it to the optimizer" in error, (world.rank, error)


@covers("ZeRO", "clipping by one norm", "same as torch.optim")
def check_zero(world: World) -> None:
    model = DistributedDataParallel(make_model())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(),
        optimizer_class=fused_optim.AdamW,
        lr=1e-2,
        max_grad_norm=0.1,
        norm_group=dist.group.WORLD,
    )
    plain = make_model()
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, world.rank, step)
        theirs.zero_grad()
        for param, copy in zip(model.parameters(), plain.parameters(), strict=True):
            copy.grad = param.grad.clone()
        norm = clip_grad_norm_(plain.parameters(), 0.1).item()
        optimizer.step()
        theirs.step()
        assert_results("ZeRO", optimizer.optim, norm, 0.1)
        for param, copy in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(param, copy, rtol=1e-4, atol=1e-6)
    optimizer.consolidate_state_dict(0)
    if world.rank == 0:
        saved = optimizer.state_dict()
        assert {"exp_avg", "exp_avg_sq", "step"} == saved["state"][0].keys()
        assert saved["param_groups"][0]["max_grad_norm"] == 0.1
