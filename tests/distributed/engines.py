"""Checks in the engines of torch: FSDP2, HSDP, tensor parallelism and their options."""

import gc
import math
from collections import Counter
from typing import Any

import torch
from distributed.norms import assert_results, expected_norm, make_model
from distributed.processes import World, covers
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import fused_optim

BF16 = torch.bfloat16
NAMES = ("AdamW", "SGD", "RMSprop", "Adagrad")
LR = {"lr": 1e-2}


def shard_model(model, mesh, **policies):
    """Shard every layer, and the rest, with FSDP2."""
    for layer in model:
        fully_shard(layer, mesh=mesh, **policies)
    return fully_shard(model, mesh=mesh, **policies)


def train(model, optimizer, rank: int, clip: float | None = None, steps: int = 3) -> None:
    """Train on batches that differ between ranks and steps."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(10 * step + rank)
        optimizer.zero_grad()
        batch = torch.randn(4, 16, generator=generator)
        loss = 10 * model(batch).float().square().mean()
        loss.backward()
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def whole(model) -> list[torch.Tensor]:
    """Return the parameters, gathered."""
    return [
        p.full_tensor().detach() if isinstance(p, DTensor) else p.detach()
        for p in model.parameters()
    ]


def assert_close(what: str, ours, theirs, tolerance: float = 2e-5) -> None:
    for one, other in zip(whole(ours), whole(theirs), strict=True):
        torch.testing.assert_close(
            one.cpu(), other.cpu(), rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
        )


def compare(what: str, make: Any, rank: int, name: str = "AdamW", **tolerance) -> None:
    """Train two models of ``make``, with our optimizer and torch's, with clipping."""
    ours, theirs = make(), make()
    optimizer = getattr(fused_optim, name)(ours.parameters(), max_grad_norm=0.3, **LR)
    train(ours, optimizer, rank)
    train(theirs, getattr(torch.optim, name)(theirs.parameters(), **LR), rank, clip=0.3)
    assert_close(f"{what}, {name}", ours, theirs, **tolerance)
    states = [v for s in optimizer.state.values() for v in s.values() if v.dim()]
    params = [p for p in ours.parameters() if isinstance(p, DTensor)]
    assert not params or any(isinstance(value, DTensor) for value in states) or name == "SGD"


@covers("FSDP2", "same as torch.optim")
def check_fsdp2(world: World) -> None:
    for name in NAMES:
        compare("FSDP2", lambda: shard_model(make_model(), world.line), world.rank, name)


@covers("HSDP", "same as torch.optim")
def check_hsdp(world: World) -> None:
    for name in NAMES[:2]:
        compare("HSDP", lambda: shard_model(make_model(), world.square), world.rank, name)


@covers("FSDP2", "same as torch.optim")
def check_one_to_three_ranks(world: World) -> None:
    for count in (1, 2, 3):
        mesh = world.parts[count]
        if mesh is not None:
            compare(f"{count} ranks", lambda m=mesh: shard_model(make_model(), m), world.rank)


def check_the_norm_of_one_process(world: World) -> None:
    model = shard_model(make_model(), world.line)
    optimizer = fused_optim.SGD(model.parameters(), lr=0.0, max_grad_norm=0.1)
    for step in range(3):
        train_step = torch.Generator().manual_seed(10 * step + world.rank)
        optimizer.zero_grad()
        (10 * model(torch.randn(4, 16, generator=train_step)).square().mean()).backward()
        optimizer.step()
        assert math.isclose(optimizer.grad_norm.item(), expected_norm(step), rel_tol=1e-5)
        assert_results("one process", optimizer, optimizer.grad_norm.item(), 0.1)


@covers("FSDP2", "same as torch.optim")
def check_policies(world: World) -> None:
    mixed = {"mp_policy": MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=torch.float32)}
    offload = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
    for what, policies in (("mixed precision", mixed), ("offload", offload)):
        compare(what, lambda p=policies: shard_model(make_model(), world.line, **p), world.rank)
    model = shard_model(make_model(), world.line, reshard_after_forward=False)
    optimizer = fused_optim.AdamW(model.parameters(), weights="split", **LR)
    train(model, optimizer, world.rank)


def check_formats_in_fsdp2(world: World) -> None:
    """bf16 parameters with extra bits follow float32 ones."""

    def make() -> Any:
        return shard_model(make_model().bfloat16(), world.line, mp_policy=MixedPrecisionPolicy())

    for weights in ("master", "split", "kahan"):
        model = make()
        optimizer = fused_optim.AdamW(model.parameters(), weights=weights, states="fp32", **LR)
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * step + world.rank)
            optimizer.zero_grad()
            model(torch.randn(4, 16, generator=generator).bfloat16()).square().mean().backward()
            optimizer.step()
        key = {"master": "master", "split": "remainder", "kahan": "compensation"}[weights]
        for param in model.parameters():
            value = optimizer.state[param][key]
            assert isinstance(value, DTensor)
            assert value.placements == param.placements
            assert value.shape == param.shape


@covers("FSDP2", "same as torch.optim")
def check_meta_init(world: World) -> None:
    """The optimizer may be made of meta tensors, whose memory comes later."""
    with torch.device("meta"):
        model = make_model()
    shard_model(model, world.line)
    optimizer = fused_optim.AdamW(model.parameters(), max_grad_norm=0.3, **LR)
    model.to_empty(device="cpu")
    reference = shard_model(make_model(), world.line)
    with torch.no_grad():
        for param, value in zip(model.parameters(), reference.parameters(), strict=True):
            param.copy_(value)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, world.rank)
    theirs = torch.optim.AdamW(reference.parameters(), **LR)
    train(reference, theirs, world.rank, clip=0.3)
    assert_close("meta", model, reference)


def parallelize(model, mesh):
    """Split the first two layers over a mesh, by columns and by rows."""
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


@covers("TP", "same as torch.optim")
def check_tensor_parallel(world: World) -> None:
    """The last layer stays plain: DTensors and plain tensors in one optimizer."""
    model = parallelize(make_model(), world.line)
    plain = make_model()
    optimizer = fused_optim.AdamW(model.parameters(), max_grad_norm=0.3, **LR)
    train(model, optimizer, 0)
    train(plain, torch.optim.AdamW(plain.parameters(), **LR), 0, clip=0.3)
    assert_close("tensor parallel", model, plain)
    assert_results("tensor parallel", optimizer, optimizer.grad_norm.item(), 0.3)


@covers("FSDP x TP", "same as torch.optim")
def check_fsdp_and_tensor_parallel(world: World) -> None:
    data, tensor = world.square["replicate"], world.square["shard"]
    position = world.square.get_local_rank("replicate")

    def make() -> Any:
        model = make_model()
        plan = {"0": ColwiseParallel(), "1": RowwiseParallel(), "2": ColwiseParallel()}
        parallelize_module(model, tensor, plan)
        return shard_model(model, data)

    ours, theirs = make(), make()
    assert any("Strided" in str(p.placements) for p in ours.parameters())
    optimizer = fused_optim.AdamW(ours.parameters(), max_grad_norm=0.3, **LR)

    def run(model, chosen, clip) -> None:
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * step + position)
            chosen.zero_grad()
            output = model(torch.randn(4, 16, generator=generator))
            (10 * output.square().mean()).backward()
            if clip:
                clip_grad_norm_(model.parameters(), 0.3)
            chosen.step()

    run(ours, optimizer, False)
    run(theirs, torch.optim.AdamW(theirs.parameters(), **LR), True)
    assert_close("FSDP x TP", ours, theirs)


@covers("DDP", "same as torch.optim", "clipping by one norm")
def check_ddp(world: World) -> None:
    compare("DDP", lambda: DistributedDataParallel(make_model()), world.rank)


def make_rounded(count: int) -> list[Parameter]:
    """Return bf16 parameters between two representable steps of any update."""
    return [Parameter(torch.full((300,), 1.0, dtype=BF16)) for _ in range(count)]


def step_rounded(params, optimizer, steps: int = 3) -> None:
    """Take steps smaller than a rounding, which stochastic rounding takes at random."""
    for _ in range(steps):
        for param in params:
            param.grad = torch.full_like(param, 0.125)
        optimizer.step()


@covers("pipeline", "stochastic rounding of one process")
def check_numbers_of_parameters(world: World) -> None:
    """Stages have the random bits of one process, with the numbers of the whole model."""
    options = {"lr": 1e-2, "weights": "stochastic", "states": "bf16", "seed": 9}
    model = make_rounded(8)
    names = [f"layer.{i}" for i in range(8)]
    optimizer = fused_optim.SGD(list(zip(names, model, strict=True)), momentum=0.5, **options)
    step_rounded(model, optimizer)
    assert len({tuple(p.tolist()) for p in model}) == 8
    mine = [2 * world.rank, 2 * world.rank + 1]
    for indices in (names, {name: i for i, name in enumerate(names)}):
        stage = make_rounded(2)
        named = [(names[i], param) for i, param in zip(mine, stage, strict=True)]
        optimizer = fused_optim.SGD(named, momentum=0.5, **options)
        step_rounded(stage, optimizer, 1)
        for param in stage:
            param.data.fill_(1.0)
        optimizer.state.clear()
        optimizer.number_parameters(indices)
        step_rounded(stage, optimizer)
        for i, param in zip(mine, stage, strict=True):
            assert torch.equal(param, model[i])


def count_objects() -> Counter[str]:
    """Count the objects of every type."""
    gc.collect()
    return Counter(type(item).__name__ for item in gc.get_objects())


def check_no_object_leaks(world: World) -> None:
    """torch's fused AdamW leaked an object for each parameter in each step."""
    model = shard_model(make_model(), world.line)
    optimizer = fused_optim.AdamW(model.parameters(), max_grad_norm=1.0, **LR)
    train(model, optimizer, world.rank, steps=5)
    before = count_objects()
    for kept in (True, False):
        for _ in range(50):
            if not kept:
                optimizer._engine.cache = None  # every step is a full one
            optimizer.step()
    grown = count_objects() - before
    # fewer than one for each step; the guards of the last full step have a few
    assert all(count < 50 for count in grown.values()), grown


def live_bytes() -> int:
    """Return the bytes of all tensors that are alive, each storage once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and not isinstance(item, DTensor) and not item.is_meta:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def check_loading_allocates_nothing_that_stays(world: World) -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = shard_model(make_model().to(BF16), world.line)
    optimizer = fused_optim.AdamW(model.parameters(), weights="split", states="fp32", **LR)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.zero_grad()

    def load(times: int) -> None:
        for _ in range(times):
            saved = get_optimizer_state_dict(model, optimizer)
            set_optimizer_state_dict(model, optimizer, saved)

    load(1)  # fills caches of torch
    before = live_bytes()
    load(2)
    assert live_bytes() == before, (live_bytes(), before)


def check_the_estimate_of_a_rank(world: World) -> None:
    """memory() adds up the local tensors of this rank, without allocating them."""
    for given in ({}, {"weights": "split", "states": "int8"}):
        params = [Parameter(torch.zeros(4 * n, 64, dtype=BF16)) for n in (3, 40)]
        model = torch.nn.ParameterList(params)
        fully_shard(model, mesh=world.line)
        estimate = fused_optim.memory(model, **given)
        optimizer = fused_optim.AdamW(model.parameters(), **given)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        values = [v for state in optimizer.state.values() for v in state.values()]
        local = [v.to_local() if isinstance(v, DTensor) else v for v in values]
        assert estimate.states == sum(value.nbytes for value in local), (estimate, given)
        assert estimate.parameters == sum(p.to_local().nbytes for p in model.parameters())


def check_peak_of_the_first_step(world: World) -> None:
    """The first step allocates the states, and a constant that does not grow with the model."""
    extra = []
    for size in (64, 256):
        params = [Parameter(torch.zeros(size, 64)) for _ in range(4)]
        model = torch.nn.ParameterList(params)
        fully_shard(model, mesh=world.line)
        optimizer = fused_optim.AdamW(model.parameters(), backend="native", **LR)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        with torch.profiler.profile(profile_memory=True) as profile:
            optimizer.step()
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
        states = sum(
            v.to_local().nbytes for s in optimizer.state.values() for v in s.values() if v.dim()
        )
        extra.append(allocated - states)
    assert extra[1] - extra[0] <= 4096, extra
