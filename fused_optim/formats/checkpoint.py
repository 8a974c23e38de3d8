"""Checkpoints: restoring states in their saved dtypes, and conversion to the layout of torch."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_optim import options
from fused_optim.formats import conversion, registry
from fused_optim.rules.common import Rule

Checkpoint = dict[str, Any]


def fill_group(group: Checkpoint, before: Checkpoint | None, defaults: Checkpoint) -> None:
    """Complete a group that was loaded or unpickled with the options that it lacks.

    Args:
        group: loaded group, completed in place.
        before: group of the optimizer before loading, whose backend and formats remain; None if
            there was none.
        defaults: default options of the optimizer.
    """
    previous = {} if before is None else {name: before[name] for name in options.GROUP_DEFAULTS}
    if before is not None:
        group.update({name: previous[name] for name in options.KEPT_ON_LOAD})
        if group.get("max_grad_norm") is None:  # loading must not disable clipping silently
            group["max_grad_norm"] = previous["max_grad_norm"]
    for name, value in {**defaults, **options.LEGACY_DEFAULTS, **previous}.items():
        if name in defaults:
            group.setdefault(name, value)


def list_torch_states(
    groups: list[Checkpoint], rule: Callable[[Checkpoint], Rule], keeps_float64_counts: bool
) -> dict[Tensor, tuple[str, ...]]:
    """Return for each parameter the names of the states that have its dtype, as in torch.

    Args:
        groups: parameter groups.
        rule: function that returns the rule of a group.
        keeps_float64_counts: True if 0-dim states stay in float64.
    """
    names = {}
    for group in groups:
        group_rule = rule(group)
        plain = registry.WEIGHTS[group["weights"]].codec is registry.PLAIN
        counts = () if keeps_float64_counts else group_rule.scalar_state
        as_torch = group["states"] == "param" and plain
        group_names = (*group_rule.state_keys, *counts, "ema") if as_torch else ()
        names.update(dict.fromkeys(group["params"], group_names))
    return names


def restore(
    params: Iterator[Tensor], state: Any, given: Mapping[str, Any], as_torch: Mapping[Tensor, Any]
) -> None:
    """Restore the saved dtypes, which ``torch.optim.Optimizer.load_state_dict`` casts.

    A parameter shares its state tensors with the checkpoint, as in torch, where they are in torch's
    formats and none is cast. Otherwise it shares none: two optimizers must not share the step count
    alone, now or after a change of format.

    Args:
        params: parameters of the optimizer, in order.
        state: state of the optimizer as torch has loaded it, changed in place.
        given: state dict that is loaded.
        as_torch: names of the states of each parameter that must have its dtype.
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
            if state[param][name].is_inference():  # it could not be updated in place
                state[param][name] = value.to(param.device, state[param][name].dtype, copy=True)
        shared = [name for name, value in tensors.items() if state[param][name] is value]
        if len(shared) < len(tensors) or not as_torch[param]:
            state[param].update({name: state[param][name].clone() for name in shared})


@torch.no_grad()
def to_torch_state_dict(
    packed: Checkpoint, params: Iterator[Tensor], rules: list[Rule]
) -> Checkpoint:
    """Convert the state dict ``packed``: one float32 tensor for each state.

    A weight that has more bits than its parameter becomes the state ``master``.
    """
    groups = [
        {k: v for k, v in group.items() if k not in options.GROUP_DEFAULTS}
        for group in packed["param_groups"]
    ]
    states = {}
    owners = [(i, rule) for group, rule in zip(groups, rules, strict=True) for i in group["params"]]
    for (index, rule), param in zip(owners, params, strict=True):
        if index in packed["state"]:
            states[index] = _to_float32(dict(packed["state"][index]), param, rule)
    return {**packed, "state": states, "param_groups": groups}


def _to_float32(state: conversion.State, param: Tensor, rule: Rule) -> conversion.State:
    for key in rule.state_keys:
        codec = conversion.detect_format(state, key, param)
        if codec is not None and state[key].itemsize < 4:
            tensors = [state.pop(name) for name in codec.column_keys(key)]
            state[key] = conversion.decode(codec, tensors, torch.float32)
    weight = conversion.detect_weight_format(state, param)
    if weight.extra_keys:
        rest = [state.pop(name) for name in weight.extra_keys]
        state["master"] = conversion.decode(weight, [param.detach(), *rest], torch.float32)
    return state
