"""Short runs of an optimizer in a storage format."""

import itertools

import torch
from helpers.models import parameters, set_grads, values
from torch import Tensor

from fused_optim import AdamW
from fused_optim.formats.registry import WEIGHTS
from fused_optim.formats.weights import load_weight

# formats that store more of a weight than the parameter
WITH_EXTRA_KEYS = [name for name, format in WEIGHTS.items() if format.codec.extra_keys]


def weight(optimizer: torch.optim.Optimizer, param: Tensor) -> Tensor:
    """Return the parameter with its extra bits, or its master, in float32."""
    return load_weight(optimizer.state.get(param, {}), optimizer._swap.own_value(param)).float()


def trained(start, grads, options, fused=AdamW, **more):
    """Take a step for each of ``grads``; return the parameters and their optimizer."""
    params = parameters(start)
    # the other backends are compared with it bit for bit
    optimizer = fused(params, **{"backend": "reference", **options, **more})
    for given in grads:
        set_grads(params, given)
        optimizer.step()
    return params, optimizer


def train_shards(start, grads, cuts, options, edit=None):
    """Train each shard of one tensor with an AdamW of its own, as on another rank.

    Args:
        start: the whole tensor, flat.
        grads: one list with the whole gradient for each step.
        cuts: offsets at which the shards begin, and the end of the last.
        options: constructor arguments.
        edit: called with the parameter after each step, without autograd.

    Returns:
        A pair of parameter and optimizer for each shard.
    """
    shards = []
    for begin, end in itertools.pairwise(cuts):
        params = parameters([start[begin:end]])
        optimizer = AdamW(params, **options)
        optimizer.shard(params[0], index=0, offset=begin, numel=len(start))
        for given in grads:
            set_grads(params, [given[0][begin:end]])
            optimizer.step()
            if edit is not None:
                with torch.no_grad():
                    edit(params[0])
        shards.append((params[0], optimizer))
    return shards


def random_grads(shapes, steps, dtype=torch.bfloat16):
    """Return normally distributed gradients, a list for each step."""
    return [values(shapes, dtype, 100 + step) for step in range(steps)]
