"""Checks of ``step_in_backward`` with FSDP2, on two processes; the others have no part in them.

Faults tried by hand: the norm of one rank, the index of a parameter in its group.
"""

import math

import torch
from distributed.processes import World, covers
from torch import nn
from torch.distributed.fsdp import fully_shard

import fused_optim
from fused_optim import step_in_backward
from fused_optim.dtensors import to_local
from fused_optim.explain import predict_rows

VARIANTS = [
    ("AdamW", torch.float32, {}),
    ("LAMB", torch.float32, {}),  # its sums are over all ranks
    ("AdamW", torch.bfloat16, {"weights": "stochastic", "states": "int8", "ema_decay": 0.9}),
    ("StableAdamW", torch.bfloat16, {"weights": "split", "states": "bf16"}),
]


def build(dtype, mesh):
    """Return a sharded model, the same at each call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)).to(dtype)
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def backward(model, seed, rank):
    """Run backward on data of this rank."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(10 * seed + rank))
    model(x.to(next(model.parameters()).dtype)).square().mean().backward()


def assert_equal_tensors(models, optimizers):
    """Assert that the local tensors of parameters and states have the same bits."""
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        states = [optimizers[0].state[one], optimizers[1].state[two]]
        assert states[0].keys() == states[1].keys()
        pairs = [(one, two), *((states[0][key], states[1][key]) for key in states[0])]
        assert all(torch.equal(to_local(a), to_local(b)) for a, b in pairs)


@covers("FSDP2", "`step_in_backward`")
def check_a_step_after_backward_has_the_same_bits(world: World) -> None:
    """Guard against hooks that FSDP2 does not call, and against indices of one rank."""
    mesh = world.parts[2]
    if mesh is None:
        return
    for name, dtype, options in VARIANTS:
        models = [build(dtype, mesh) for _ in range(2)]
        optimizers = [
            getattr(fused_optim, name)(model.parameters(), lr=0.01, **options) for model in models
        ]
        step_in_backward(models[1], optimizers[1])
        explained = {key for _, key, _ in predict_rows(optimizers[0], optimizers[0]._engine)}
        for seed in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                backward(model, seed, world.rank)
                freed = [param.grad is None for param in model.parameters()]
                assert freed == [model is models[1]] * 4
                optimizer.step()
            optimizers[0].zero_grad()
            assert_equal_tensors(models, optimizers)
        assert explained == set(optimizers[0]._engine.bucket_keys)


@covers("FSDP2", "`step_in_backward`")
def check_the_norm_of_the_last_step_is_that_of_whole_gradients(world: World) -> None:
    """Guard against norms of one rank in ``clip_by_last_norm``."""
    mesh = world.parts[2]
    if mesh is None:
        return
    model, bound, factor = build(torch.float32, mesh), 0.01, 1.0
    optimizer = fused_optim.AdamW(model.parameters(), lr=0.01, max_grad_norm=bound)
    handle = step_in_backward(model, optimizer, clip_by_last_norm=True)
    for seed in range(3):
        with handle.accumulate():
            backward(model, seed, world.rank)
        norm = nn.utils.get_total_norm([param.grad for param in model.parameters()])
        optimizer.zero_grad()
        backward(model, seed, world.rank)
        optimizer.step()
        assert math.isclose(optimizer.grad_norm, norm.full_tensor(), rel_tol=1e-5)
        assert handle.last_norm == optimizer.grad_norm
        assert math.isclose(optimizer.clip_factor, factor, rel_tol=1e-12)
        factor = min(1.0, bound / (handle.last_norm.item() + 1e-6))
    assert factor < 1.0
