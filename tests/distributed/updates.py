"""Checks of updates: DTensors in every layout have the bits of plain tensors."""

import contextlib
import itertools
import math

import torch
from distributed.layouts import SHAPES, Twin, make_layouts
from distributed.processes import World, covers
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import Parameter

import fused_optim
from fused_optim.testing.cases import CASES, Case

BF16 = torch.bfloat16
STEPS = 3
FORMATS = (
    {"weights": "master"},
    {"weights": "split", "states": "bf16"},
    {"weights": "split24"},
    {"weights": "kahan", "states": "fp32"},
    {"weights": "stochastic", "states": "bf16", "ema_decay": 0.9},
)


def is_elementwise(case: Case) -> bool:
    """Return True if no sum over tensors, whose order depends on the sharding, takes part."""
    return "max_grad_norm" not in case.additions and case.class_name not in REDUCED


REDUCED = ("LAMB", "LARS", "StableAdamW")


def train(twin: Twin, optimizers, steps: int = STEPS, **grads) -> None:
    """Take steps with both optimizers."""
    for _ in range(steps):
        twin.set_grads(**grads)
        for optimizer in optimizers:
            optimizer.step()


def choose_cases() -> list[Case]:
    """Return the first case of each class and rule: other options change no column of a row."""
    found: dict[tuple[str, object], Case] = {}
    for case in filter(is_elementwise, CASES):
        optimizer = case.fused([Parameter(torch.zeros(1))], **case.options, **case.additions)
        found.setdefault((case.class_name, optimizer.rule(optimizer.param_groups[0])), case)
    return list(found.values())


@covers("FSDP2, HSDP, TP, FSDP x TP", "every optimizer")
def check_every_rule(world: World) -> None:
    layouts = list(make_layouts(world).values())
    for case in choose_cases():
        twin = Twin(layouts, shapes=2 * SHAPES)  # one for each layout
        given = {**case.options, **case.additions, "backend": "reference"}
        optimizers = [case.fused(params, **given) for params in (twin.whole, twin.sharded)]
        train(twin, optimizers, 2)
        twin.assert_same(optimizers, case.name)
        assert optimizers[1]._engine.cache is not None, case.name


@covers("FSDP2, HSDP, TP, FSDP x TP", "every optimizer", "storage formats")
def check_every_optimizer_in_formats(world: World) -> None:
    layouts = list(make_layouts(world).values())
    first_case = {case.class_name: case for case in reversed(CASES) if is_elementwise(case)}
    formats = itertools.cycle(({"weights": "master", "states": "fp32"}, {"weights": "split24"}))
    for (name, case), given in zip(first_case.items(), formats, strict=False):
        twin = Twin(layouts, BF16, 2 * SHAPES)
        options = {**case.options, **case.additions, "backend": "reference", **given}
        optimizers = [case.fused(params, **options) for params in (twin.whole, twin.sharded)]
        train(twin, optimizers, 2)
        twin.assert_same(optimizers, f"{name}, {given}")


@covers("FSDP2, HSDP, TP, FSDP x TP", "storage formats", "stochastic rounding of one process")
def check_every_layout_and_format(world: World) -> None:
    for name, layout in make_layouts(world).items():
        for given in FORMATS:
            twin = Twin([layout], BF16)
            options = {"lr": 0.01, "seed": 5, "backend": "reference", **given}
            optimizers = [
                fused_optim.AdamW(params, **options) for params in (twin.whole, twin.sharded)
            ]
            train(twin, optimizers, 2)
            twin.assert_same(optimizers, f"{name}, {given}")


@covers("FSDP2, TP, FSDP x TP", "storage formats", "stochastic rounding of one process")
def check_kernels(world: World) -> None:
    """The kernels on the CPU, which read the runs of strided shards."""
    layouts = make_layouts(world)
    for name in ("rows", "columns", "strided"):
        for given in ({}, {"weights": "split24", "states": "bf16"}):
            twin = Twin([layouts[name]], BF16)
            options = {"lr": 0.01, "seed": 5, "backend": "native", **given}
            optimizers = [
                fused_optim.AdamW(params, **options) for params in (twin.whole, twin.sharded)
            ]
            train(twin, optimizers)
            twin.assert_same(optimizers, f"{name}, {given}")


@covers("FSDP2, HSDP, TP, FSDP x TP", "8-bit states")
def check_scaled_states(world: World) -> None:
    layouts = make_layouts(world)
    shapes = ((130, 64), (24, 512), (3, 2048))
    for name in ("rows", "rows in replicas", "rows twice", "strided"):
        for states in ("int8", "fp8"):
            twin = Twin([layouts[name]], BF16, shapes)
            options = {"lr": 0.01, "states": states, "weights": "split", "backend": "reference"}
            optimizers = [
                fused_optim.AdamW(params, **options) for params in (twin.whole, twin.sharded)
            ]
            train(twin, optimizers)
            twin.assert_same(optimizers, f"{name}, {states}")
    twin = Twin([layouts["columns"]], BF16, ((24, 512),))
    optimizers = [fused_optim.Lion(p, states="int8") for p in (twin.whole, twin.sharded)]
    train(twin, optimizers)
    twin.assert_same(optimizers, "columns, int8")


def check_scales_that_cannot_be_sharded(world: World) -> None:
    layouts = make_layouts(world)
    for shape, name in (((8192,), "rows"), ((100, 65), "rows"), ((100, 64), "columns")):
        twin = Twin([layouts[name]], BF16, (shape,))
        error = raised(ValueError, fused_optim.AdamW, [("w", twin.sharded[0])], states="int8")
        assert "'w'" in error, error
        assert "multiple of 64" in error, error
        assert "'states': 'fp32'" in error, error
    twin = Twin([layouts["rows"]], BF16, ((63, 65),))  # small as a whole
    fused_optim.AdamW(twin.sharded, states="int8")


def check_layouts_that_stochastic_rounding_refuses(world: World) -> None:
    """Refused by name at construction: two dims cut after the first, and transposed memory."""
    layout = (world.square, (Shard(1), Shard(2)))
    twice = Twin([layout], BF16, ((4, 6, 8),)).sharded[0]
    local = torch.zeros(16, 8, dtype=BF16).t()
    given = {"shape": torch.Size((32, 16)), "stride": (1, 32)}
    rows = DTensor.from_local(local, world.line, [Shard(0)], run_check=False, **given)
    for param in (twice, Parameter(rows)):
        for options in ({"weights": "stochastic"}, {"states": "bf16"}, {"weights": "kahan"}):
            error = raised(ValueError, fused_optim.AdamW, [("w", param)], **options)
            assert "'w'" in error, error
            assert "stochastic rounding" in error, error
        fused_optim.AdamW([("w", param)], weights="master", states="fp32")


def check_mixed(world: World) -> None:
    """Plain tensors and DTensors on different meshes in one optimizer, some without a gradient."""
    layouts = make_layouts(world)
    twin = Twin([layouts["rows"], layouts["rows and columns"], layouts["columns"]])
    plain = [Parameter(torch.ones(5)) for _ in range(2)]
    optimizers = [
        fused_optim.AdamW([*params, extra], lr=0.1, max_grad_norm=math.inf, backend="reference")
        for params, extra in zip((twin.whole, twin.sharded), plain, strict=True)
    ]
    for missing in ((), (1,), (0, 2), (0, 1, 2, 3), ()):
        twin.set_grads(missing=missing)
        for extra, optimizer in zip(plain, optimizers, strict=True):
            extra.grad = torch.full((5,), 0.5)
            optimizer.step()
    twin.assert_same(optimizers, "mixed")
    assert torch.equal(*plain)


def check_gradients_of_other_placements(world: World) -> None:
    """Partial and whole gradients are placed as the parameter is."""
    layouts = make_layouts(world)
    twin = Twin([layouts["rows"]])
    optimizers = [fused_optim.SGD(params, lr=1.0) for params in (twin.whole, twin.sharded)]
    twin.set_grads()
    for i, (param, whole) in enumerate(zip(twin.sharded, twin.whole, strict=True)):
        value = torch.round(8 * whole.grad)  # sums of these are exact
        whole.grad = 4 * value
        if i % 2:
            param.grad = DTensor.from_local(value, world.line, [Partial()], run_check=False)
        else:
            param.grad = DTensor.from_local(4 * value, world.line, [Replicate()], run_check=False)
    for optimizer in optimizers:
        optimizer.step()
    twin.assert_same(optimizers, "other placements")
    train(twin, optimizers)  # on the fast path, which one gradient leaves
    twin.set_grads()
    param, whole = twin.sharded[0], twin.whole[0]
    param.grad = DTensor.from_local(whole.grad, world.line, [Replicate()], run_check=False)
    for optimizer in optimizers:
        optimizer.step()
    twin.assert_same(optimizers, "other placements later")


def check_what_is_refused(world: World) -> None:
    twin = Twin([(world.line, (Shard(0),))])
    param = twin.sharded[0]
    optimizer = fused_optim.AdamW([("w", param)], lr=0.1)
    before = param.to_local().clone()
    param.grad = None
    other = DTensor.from_local(torch.ones(5, 64), world.square, [Replicate(), Shard(0)])
    for grad, message in ((other, "must be a DTensor of shape (10, 64) on"),):
        param.grad = grad.redistribute(placements=grad.placements)
        error = raised(ValueError, optimizer.step)
        assert message in error, error
        assert "'w'" in error, error
    assert torch.equal(param.to_local(), before)
    partial = DTensor.from_local(torch.ones(4, 4), world.line, [Partial()], run_check=False)
    error = raised(ValueError, fused_optim.AdamW, [Parameter(partial)])
    assert "must be sharded or replicated" in error, error
    error = raised(ValueError, optimizer.shard, param, index=0, offset=0, numel=640)
    assert "DTensor" in error, error


def check_replaced_parameters(world: World) -> None:
    """Engines that shard after construction put DTensors into the groups of the optimizer."""
    twin = Twin([(world.line, (Shard(0),))])
    optimizers = [fused_optim.AdamW(twin.whole, lr=0.1, backend="reference")]
    late = fused_optim.AdamW([p.detach().clone().requires_grad_() for p in twin.whole], lr=0.1)
    late.param_groups[0]["params"] = list(twin.sharded)
    optimizers.append(late)
    late.param_groups[0]["backend"] = "reference"
    train(twin, optimizers)
    twin.assert_same(optimizers, "replaced")


def check_versions(world: World) -> None:
    """Both version counters are incremented, on the fast path as well."""
    twin = Twin([(world.line, (Shard(0),))])
    optimizer = fused_optim.AdamW(twin.sharded)
    for _ in range(3):
        twin.set_grads()
        before = [(p._version, p.to_local()._version) for p in twin.sharded]
        optimizer.step()
        after = [(p._version, p.to_local()._version) for p in twin.sharded]
        for old, new in zip(before, after, strict=True):
            assert new[0] > old[0], (old, new)
            assert new[1] > old[1], (old, new)


@covers("FSDP2, HSDP, TP, FSDP x TP", "storage formats")
def check_averages_and_schedule_free(world: World) -> None:
    twin = Twin(list(make_layouts(world).values()), BF16)
    options = {"lr": 0.1, "ema_decay": 0.5, "weights": "split", "backend": "reference"}
    optimizers = [fused_optim.AdamW(params, **options) for params in (twin.whole, twin.sharded)]
    train(twin, optimizers)
    train(twin, optimizers, missing=(1,))
    with optimizers[0].swap_ema(), optimizers[1].swap_ema():
        twin.assert_same(optimizers, "averages")
    twin.assert_same(optimizers, "after averages")
    for optimizer in optimizers:
        optimizer.weights_replaced()
    train(twin, optimizers)
    twin.assert_same(optimizers, "after weights_replaced")
    twin = Twin(list(make_layouts(world).values()), BF16)
    options = {"weights": "split", "backend": "reference"}
    optimizers = [
        fused_optim.ScheduleFreeAdamW(params, **options) for params in (twin.whole, twin.sharded)
    ]
    train(twin, optimizers)
    for switch in ("eval", "train"):
        for optimizer in optimizers:
            getattr(optimizer, switch)()
        twin.assert_same(optimizers, switch)
    train(twin, optimizers)
    twin.assert_same(optimizers, "schedule-free")


@contextlib.contextmanager
def no_zeros_in_new_memory():
    """Fill memory that nothing was written to with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def raised(error, function, *args, **options) -> str:
    """Call a function that must raise ``error``; return the message."""
    try:
        function(*args, **options)
    except error as reason:
        return str(reason)
    raise AssertionError(f"no {error.__name__}")
