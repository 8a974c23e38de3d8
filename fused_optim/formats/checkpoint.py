"""Checkpoints: states as they were saved, whatever their dtype, and in the format of torch."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_optim import options, storage
from fused_optim.rules.common import Rule

Checkpoint = dict[str, Any]


def restore(
    params: Iterator[Tensor], state: Any, given: Mapping[str, Any], as_torch: Mapping[Tensor, Any]
) -> None:
    """Take back what ``torch.optim.Optimizer.load_state_dict`` cast to the parameter's dtype.

    A parameter shares its tensors with the checkpoint, as in torch, where they are in torch's
    formats and none is cast; else it shares none: two live optimizers must not have the count alone
    in common, now or after a change of format.

    Args:
        params: of the optimizer, in order.
        state: of the optimizer, as torch has loaded it.
        given: the checkpoint.
        as_torch: names of the states that are to be in the parameter's dtype.
    """
    ids = chain.from_iterable(group["params"] for group in given["param_groups"])
    for index, param in zip(ids, params, strict=True):
        saved = given["state"].get(index, {})
        tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
        for name in tensors.keys() - {"step"}:
            value = tensors[name]
            cast = name in as_torch[param] and value.is_floating_point() and value.itemsize > 1
            if state[param][name].dtype != value.dtype and not cast:
                state[param][name] = value.to(param.device, copy=True)
        for name, value in tensors.items():
            if state[param][name].is_inference():  # which could not be updated in place
                state[param][name] = value.to(param.device, state[param][name].dtype, copy=True)
        shared = [name for name, value in tensors.items() if state[param][name] is value]
        if len(shared) < len(tensors) or not as_torch[param]:
            state[param].update({name: state[param][name].clone() for name in shared})


@torch.no_grad()
def to_torch_state_dict(packed: Checkpoint, params: Iterator[Tensor], rules: list[Rule]) -> Checkpoint:
    """``packed``, the ``state_dict()`` of an optimizer, with every value as one float32.

    A weight that has more than its parameter becomes the state ``master``.
    """
    groups = [
        {k: v for k, v in group.items() if k not in options.GROUP_DEFAULTS}
        for group in packed["param_groups"]
    ]
    states = {}
    owners = [(i, rule) for group, rule in zip(groups, rules, strict=True) for i in group["params"]]
    for (index, rule), param in zip(owners, params, strict=True):
        if index in packed["state"]:
            states[index] = _as_float32(dict(packed["state"][index]), param, rule)
    return {**packed, "state": states, "param_groups": groups}


def _as_float32(state: storage.State, param: Tensor, rule: Rule) -> storage.State:
    for state_key in rule.state_keys:
        codec = storage.found(state, state_key, param)
        if codec is not None and state[state_key].itemsize < 4:
            tensors = [state.pop(name) for name in storage.names(state_key, codec)]
            state[state_key] = storage.decoded(codec, tensors, torch.float32)
    weight = storage.detect_weight_format(state, param)
    if storage.extras(weight):
        rest = [state.pop(name) for name in storage.extras(weight)]
        state["master"] = storage.decoded(weight, [param.detach(), *rest], torch.float32)
    return state
