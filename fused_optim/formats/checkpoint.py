"""Checkpoints: restoring states in their saved dtypes, and conversion to the layout of torch."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fused_optim import dtensors, options
from fused_optim.formats import conversion, registry
from fused_optim.options import get_option
from fused_optim.rules.common import Rule

Checkpoint = dict[str, Any]


def fill_group(group: Checkpoint, before: Checkpoint | None, defaults: Checkpoint) -> None:
    """Complete a group that was loaded or unpickled with the options that it lacks.

    Args:
        group: loaded group, completed in place.
        before: group of the optimizer before loading, whose backend, formats and additions that
            the checkpoint does not have remain; None if there was none.
        defaults: default options of the optimizer.
    """
    previous: Checkpoint = {}
    if before is not None:
        previous = {name: get_option(before, name) for name in options.GROUP_DEFAULTS}
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
        plain = registry.WEIGHTS[get_option(group, "weights")].codec is registry.PLAIN
        counts = () if keeps_float64_counts else group_rule.scalar_state
        as_torch = get_option(group, "states") == "param" and plain
        group_names = (*group_rule.state_keys, *counts, "ema") if as_torch else ()
        names.update(dict.fromkeys(group["params"], group_names))
    return names


# The tensors of a state dict that are no numbers but bits: codes that a scale belongs to, and
# remainders. Collectives (NCCL and gloo) refuse some of their dtypes, so a state dict has others,
# bit by bit. Dims of one element at the end tell the formats apart: what loads a tensor in place,
# as torch.distributed.checkpoint does, then refuses to load bits into numbers.
PORTABLE = {
    torch.int16: torch.bfloat16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}
CODE_DIMS = {torch.int8: 2, torch.bfloat16: 1}  # by the dtype of a remainder in a state dict


def make_portable(packed: Checkpoint) -> Checkpoint:
    """Return a state dict without process groups and dtypes that collectives refuse.

    The tensors are views: writing to them, as ``torch.distributed.checkpoint`` does to load, writes
    to the state of the optimizer.
    """
    states = {}
    for index, state in packed["state"].items():
        bits = [name for name in state if _is_bits(name, state)] if isinstance(state, dict) else []
        states[index] = state
        if bits:
            states[index] = {**state, **{name: _make_portable(name, state[name]) for name in bits}}
    # ZeroRedundancyOptimizer copies its arguments into the groups; a process group has no pickle
    groups = [
        {name: value for name, value in group.items() if name != "norm_group"}
        for group in packed["param_groups"]
    ]
    return {**packed, "state": states, "param_groups": groups}


def _is_bits(name: str, state: Mapping[str, Any]) -> bool:
    """Return True if a state entry is codes or a remainder."""
    value = state[name]
    coded = name == "remainder" or f"{name}_scale" in state
    return coded and isinstance(value, Tensor) and (name == "remainder" or value.itemsize == 1)


def _make_portable(name: str, value: Tensor) -> Tensor:
    dtype = PORTABLE.get(value.dtype, value.dtype)
    more = CODE_DIMS[dtype] if name == "remainder" else 1
    return dtensors.view_as(value, dtype, value.dim() + more)


def undo_portable(
    state: Mapping[str, Any], param: Tensor, states: str, nonnegative: Collection[str]
) -> dict[str, Tensor]:
    """Return the tensors of a state that a state dict has otherwise, as the optimizer has them.

    Args:
        state: entries of the parameter in the state dict, of this release or an older one.
        param: parameter of the state.
        states: format of states of the saved group.
        nonnegative: names of the states that are never negative.
    """
    pair = registry.STATES.get(states, registry.STATES["param"])
    result = {}
    for name in state:
        if not _is_bits(name, state):
            continue
        value: Tensor = state[name]
        dtype = torch.int16 if value.dtype is torch.bfloat16 else value.dtype
        if name != "remainder":
            codes = (pair.unsigned if name in nonnegative else pair.signed).columns[0].dtype
            dtype = value.dtype if codes is None or codes.itemsize > 1 else codes
        if dtype != value.dtype or value.dim() > param.dim():
            result[name] = dtensors.view_as(value, dtype, param.dim())
    return result


def restore(
    params: Iterator[Tensor],
    state: Any,
    given: Mapping[str, Any],
    as_torch: Mapping[Tensor, Any],
    rules: list[Rule],
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
        rules: rule of each group.
    """
    owners = [
        (index, get_option(group, "states"), [key for key, _ in rule.nonnegative])
        for group, rule in zip(given["param_groups"], rules, strict=True)
        for index in group["params"]
    ]
    for (index, states, nonnegative), param in zip(owners, params, strict=True):
        saved = given["state"].get(index, {})
        tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
        tensors |= undo_portable(tensors, param, states, nonnegative)
        for name in tensors.keys() - {"step"}:
            value = tensors[name]
            cast = name in as_torch[param] and value.is_floating_point() and value.itemsize > 1
            current = state[param][name]
            if not cast and (current.dtype, current.shape) != (value.dtype, value.shape):
                state[param][name] = value.to(param.device, copy=True)
        for name, value in tensors.items():
            if state[param][name].is_inference():  # it could not be updated in place
                state[param][name] = value.to(param.device, state[param][name].dtype, copy=True)
        shared = [name for name, value in tensors.items() if state[param][name] is value]
        # what gathers and distributes a checkpoint makes new DTensors, but passes a step count on
        whole = len(shared) == len(tensors) and not dtensors.is_dtensor(param)
        if not (whole and as_torch[param]):
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
            states[index] = dict(packed["state"][index])
            _to_float32(dtensors.local_state(states[index], param), dtensors.to_local(param), rule)
    return {**packed, "state": states, "param_groups": groups}


def _to_float32(state: conversion.State, param: Tensor, rule: Rule) -> None:
    for key in rule.state_keys:
        codec = conversion.detect_format(state, key, param)
        if codec is not None and state[key].itemsize < 4:
            tensors = [state.pop(name) for name in codec.column_keys(key)]
            state[key] = conversion.decode(codec, tensors, torch.float32)
    weight = conversion.detect_weight_format(state, param)
    if weight.extra_keys:
        rest = [state.pop(name) for name in weight.extra_keys]
        state["master"] = conversion.decode(weight, [param.detach(), *rest], torch.float32)
