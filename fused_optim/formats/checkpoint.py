"""Checkpoints: states as they were saved, whatever their dtype, and in the format of torch."""

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
    """Complete a group that was loaded or unpickled: options that it lacks, and own formats.

    Args:
        group: the group, completed in place.
        before: the group of the optimizer before loading; None if there was none.
        defaults: defaults of the optimizer.
    """
    own = {} if before is None else {name: before[name] for name in options.GROUP_DEFAULTS}
    if before is not None:
        group.update({name: own[name] for name in options.KEPT_ON_LOAD})
        if group.get("max_grad_norm") is None:  # nothing turns off clipping silently
            group["max_grad_norm"] = own["max_grad_norm"]
    for name, value in {**defaults, **options.LEGACY_DEFAULTS, **own}.items():
        if name in defaults:
            group.setdefault(name, value)


def list_torch_states(
    groups: list[Checkpoint], rule: Callable[[Checkpoint], Rule], keeps_float64_counts: bool
) -> dict[Tensor, tuple[str, ...]]:
    """Return for each parameter the names of the states that have its dtype, as in torch.

    Args:
        groups: parameter groups.
        rule: returns the rule of a group.
        keeps_float64_counts: whether 0-dim states stay in float64.
    """
    names = {}
    for group in groups:
        own_rule = rule(group)
        plain = registry.WEIGHTS[group["weights"]].codec is registry.PLAIN
        counts = () if keeps_float64_counts else own_rule.scalar_state
        as_torch = group["states"] == "param" and plain
        own = (*own_rule.state_keys, *counts, "ema") if as_torch else ()
        names.update(dict.fromkeys(group["params"], own))
    return names


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
def to_torch_state_dict(
    packed: Checkpoint, params: Iterator[Tensor], rules: list[Rule]
) -> Checkpoint:
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
