"""Short runs of an optimizer in a storage format, and what it keeps."""

import torch
from helpers.models import parameters, set_grads, values
from torch import Tensor

from fused_optim import AdamW
from fused_optim.formats.weights import load_weight


def weight(optimizer: torch.optim.Optimizer, param: Tensor) -> Tensor:
    """The parameter with what stands beside it, in float32."""
    return load_weight(optimizer.state.get(param, {}), optimizer._swap.own_value(param)).float()


def trained(start, grads, options, fused=AdamW, **more):
    """Parameters of ``start`` after a step for each of ``grads``, and their optimizer."""
    params = parameters(start)
    # the other backends are compared with it bit for bit
    optimizer = fused(params, **{"backend": "reference", **options, **more})
    for given in grads:
        set_grads(params, given)
        optimizer.step()
    return params, optimizer


def random_grads(shapes, steps, dtype=torch.bfloat16):
    return [values(shapes, dtype, 100 + step) for step in range(steps)]
