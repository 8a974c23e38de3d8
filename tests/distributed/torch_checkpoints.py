"""Checks of checkpoints to and from torch.optim: through DCP, flattened or not, and by names."""

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from distributed.checkpoints import SHAPES, assert_same_states, copy_weights, make, step_both
from distributed.layouts import Twin, make_layouts
from distributed.processes import World, covers
from distributed.updates import train
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import fused_optim


@covers("FSDP2", "checkpoints of torch.optim")
def check_to_and_from_torch(world: World) -> None:
    """A run of torch.optim goes on with ours, and back, through DCP."""
    layout = make_layouts(world)["rows"]
    for name, options in (("AdamW", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})):
        classes = getattr(torch.optim, name), getattr(fused_optim, name)
        for flat in (False, True) if name == "AdamW" else (True,):
            chosen = StateDictOptions(flatten_optimizer_state_dict=flat)
            for number, (before, after) in enumerate((classes, classes[::-1])):
                twin, model, optimizer = make(layout, before, torch.float32, **options)
                train(twin, [optimizer])
                path = world.folder / f"torch-{name}-{flat}-{number}"
                saved = get_optimizer_state_dict(model, optimizer, options=chosen)
                dcp.save({"optimizer": saved}, checkpoint_id=path)
                copied, other, resumed = make(layout, after, torch.float32, **options)
                copy_weights(twin, copied)
                template = get_optimizer_state_dict(other, resumed, options=chosen)
                dcp.load({"optimizer": template}, checkpoint_id=path)
                set_optimizer_state_dict(other, resumed, template, options=chosen)
                assert_same_states(name, optimizer, resumed, twin, copied)
                step_both(twin, copied, (optimizer, resumed), 3)
                for param, source in zip(copied.sharded, twin.sharded, strict=True):
                    torch.testing.assert_close(
                        param.to_local(), source.to_local(), rtol=1e-5, atol=1e-6
                    )


def flatten_by_name(optimizers) -> dict[str, Any]:
    """Return the states and options of several optimizers by name, as torchtitan saves them."""
    flat = {}
    for optimizer in optimizers:
        saved = optimizer.state_dict()
        for group in saved["param_groups"]:
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            for index, name in zip(group["params"], group["param_names"], strict=True):
                state = saved["state"][index]
                flat |= {f"state.{name}.{key}": value for key, value in state.items()}
                flat |= {f"param_groups.{name}.{key}": value for key, value in options.items()}
    return flat


def load_by_name(optimizer, flat: dict[str, Any]) -> None:
    """Load what :func:`flatten_by_name` returned: the entries that the optimizer has itself."""
    states, groups = {}, []
    for group in optimizer.param_groups:
        first = len(states)
        for param, name in zip(group["params"], group["param_names"], strict=True):
            own = optimizer.state[param]
            states[len(states)] = {key: flat[f"state.{name}.{key}"] for key in own}
        name = group["param_names"][0]
        keys = group.keys() - {"params", "param_names"}
        options = {key: flat[f"param_groups.{name}.{key}"] for key in keys}
        groups.append({"params": list(range(first, len(states))), **options})
    optimizer.load_state_dict({"state": states, "param_groups": groups})


@covers("FSDP2", "checkpoints of torch.optim")
def check_several_optimizers_by_name(world: World) -> None:
    """A container of optimizers saves one flat dict, by names, as that of torchtitan does."""
    layout = make_layouts(world)["rows"]
    classes = torch.optim.AdamW, fused_optim.AdamW
    for number, (before, after) in enumerate((classes, classes[::-1], classes[1:] * 2)):

        def start(optimizer_class) -> tuple[Twin, list[Any]]:
            twin = Twin([layout], torch.float32, SHAPES)
            named = [(f"p{i}", param) for i, param in enumerate(twin.sharded)]
            return twin, [optimizer_class(part, lr=0.01) for part in (named[:2], named[2:])]

        twin, optimizers = start(before)
        train(twin, optimizers)
        path = world.folder / f"by-name-{number}"
        dcp.save({"optimizer": flatten_by_name(optimizers)}, checkpoint_id=path)
        copied, resumed = start(after)
        train(copied, resumed, 1)  # creates the states
        copy_weights(twin, copied)
        template = flatten_by_name(resumed)
        dcp.load({"optimizer": template}, checkpoint_id=path)
        for optimizer in resumed:
            load_by_name(optimizer, template)
        step_both(twin, copied, (*optimizers, *resumed), 3)
        for param, source in zip(copied.sharded, twin.sharded, strict=True):
            torch.testing.assert_close(param.to_local(), source.to_local(), rtol=1e-5, atol=1e-6)


@covers("FSDP2", "checkpoints of torch.optim")
def check_additions_and_torch(world: World) -> None:
    """A checkpoint of torch loads where an addition is set, and leaves it as it is."""
    layout = make_layouts(world)["rows"]
    twin, model, optimizer = make(layout, torch.optim.AdamW, torch.float32)
    train(twin, [optimizer])
    path = world.folder / "additions"
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=path)
    copied, other, resumed = make(layout, fused_optim.AdamW, torch.float32, max_grad_norm=0.5)
    template = get_optimizer_state_dict(other, resumed)
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load({"optimizer": template}, checkpoint_id=path, planner=planner)
    set_optimizer_state_dict(other, resumed, template)
    assert resumed.max_grad_norm == 0.5
    assert_same_states("additions", optimizer, resumed, twin, copied)
