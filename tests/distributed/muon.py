"""Checks of Muon on DTensors: whole matrices, whatever their sharding."""

import torch
from distributed.layouts import make_layouts, shard
from distributed.processes import World
from distributed.updates import raised
from torch.nn import Parameter

import fused_optim


def check_what_is_refused(world: World) -> None:
    """A matrix of which a rank has a part would be orthogonalized by its parts."""
    layouts = make_layouts(world)
    for name in ("rows", "columns", "rows in replicas", "rows and columns", "strided"):
        param = Parameter(shard(torch.ones(8, 12), *layouts[name]))
        error = raised(ValueError, fused_optim.Muon, [("w", param)])
        assert "'w'" in error, error
        assert "whole matrices" in error, error


def check_what_is_not_sharded(world: World) -> None:
    param = Parameter(shard(torch.ones(8, 12), *make_layouts(world)["replicas"]))
    fused_optim.Muon([("w", param)])
