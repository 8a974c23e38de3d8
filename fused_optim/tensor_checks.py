"""Checks of parameters, gradients and states, which return the tensors of this rank.

A kernel reads addresses without any check, so everything is checked before a launch. DTensors are
replaced by their local tensors here; what follows sees local tensors only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from fused_optim import dtensors
from fused_optim.dtensors import is_dtensor, to_local
from fused_optim.formats import registry
from fused_optim.private_api import is_fsdp1_flat, is_wrapper
from fused_optim.rules.common import Rule

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SUPPORTED = (*FLOATING, torch.complex32, torch.complex64, torch.complex128)
# dtypes of 8-bit formats: see formats/registry.py
CODES = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


def check_sums_are_known(params: Iterable[tuple[Tensor, int]], local_norm: bool) -> None:
    """Raise ValueError if a sum would be over shards of which a tensor does not tell.

    Args:
        params: each parameter, with the number of sums that its rule needs over it.
        local_norm: True if the norm is formed without a ``norm_group``.
    """
    flat = [num_sums for param, num_sums in params if is_fsdp1_flat(param)]
    if flat and local_norm:
        raise ValueError(
            "norm_group must be the process group that shards the parameters for max_grad_norm or "
            "nonfinite='skip' with FullyShardedDataParallel (FSDP1), got None: the norm of the "
            "flattened shards would be that of this rank alone"
        )
    if any(flat):
        raise ValueError(
            "the parameters must not be flattened by FullyShardedDataParallel (FSDP1) for a rule "
            "that needs norms of whole tensors (LAMB, LARS, StableAdamW): use FSDP2, "
            "torch.distributed.fsdp.fully_shard"
        )


def named_params(group: Any) -> Iterator[tuple[Tensor, str | None]]:
    """Return an iterator of the parameters of a group, each with its name or None."""
    names = group.get("param_names", ())
    return zip_longest(group["params"], names[: len(group["params"])])


def describe_param(param: Tensor, group: int, name: str | None) -> str:
    """Return name, shape and group of a parameter, for messages."""
    called = "" if name is None else f"{name!r} "
    return f"parameter {called}of shape {tuple(param.shape)} in group {group}"


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return True if elements are known to share one memory location, as after ``expand``."""
    return any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def unsupported_reason(param: Tensor) -> str | None:
    """Return the requirement that ``param`` fails, worded to follow "must", or None."""
    if param.dtype not in SUPPORTED:
        return f"be floating or complex, got {param.dtype}"
    if is_dtensor(param):
        return unsupported_reason(to_local(param))
    # a wrapper has the memory of another tensor
    if param.layout is not torch.strided or is_wrapper(param):
        kind = f"{type(param).__module__}.{type(param).__qualname__}, {param.layout}"
        return f"be a dense tensor that owns its memory, got {kind}"
    if _overlaps_itself(param):
        return f"not overlap itself in memory (call contiguous()), got strides {param.stride()}"
    if param.is_conj() or param.is_neg():
        return "have its own values, got a conjugate or negative view"
    return None


def check_parameter(
    param: Any,
    group: int,
    name: str | None = None,
    weights: str = "plain",
    states: str = "param",
) -> None:
    """Raise ValueError unless ``param`` can be updated and stored in these formats.

    Args:
        param: parameter to check.
        group: index of its group, for the message.
        name: name of the parameter, for the message; None if unknown.
        weights: format of weights of the group.
        states: format of states of the group.
    """
    reason = unsupported_reason(param)
    if reason is None:
        format_reason = registry.unsupported_reason(param, weights, states)
        reason = None if format_reason is None else f"be {format_reason}"
    if reason is None and is_dtensor(param):
        block = registry.scale_block(param.numel(), states)
        narrow = weights if param.dtype in registry.HALVES else "plain"
        stochastic = registry.is_stochastic(narrow, states)
        reason = dtensors.unsupported_reason(param, block, stochastic)
    if reason is not None:
        raise ValueError(f"{describe_param(param, group, name)} must {reason}")


def match_indices(
    groups: Sequence[Mapping[str, Any]], indices: Mapping[str, int] | Iterable[str]
) -> list[tuple[Tensor, int]]:
    """Return the parameters of groups with their indices in the whole model, matched by name.

    Raises:
        ValueError: a parameter has no name, or ``indices`` lacks its name or has it twice.
    """
    if not isinstance(indices, Mapping):
        names = list(indices)
        indices = {name: i for i, name in enumerate(names)}
        if len(indices) != len(names):
            raise ValueError(f"indices must have every name once, got {names!r}")
    if any(len(g["params"]) != len(g.get("param_names", g["params"])) for g in groups):
        raise ValueError(
            "param_names must have a name for each parameter of its group: ZeroRedundancyOptimizer "
            "gives each rank all names; pass index= of shard() there"
        )
    matched = []
    for param, name in chain.from_iterable(map(named_params, groups)):
        if name is None or name not in indices:
            raise ValueError(
                "indices must have the name of every parameter of this optimizer, which "
                f"named_parameters() gives; it lacks {name!r}"
            )
        matched.append((param, indices[name]))
    return matched


def check_gradient(param: Tensor, group: int, name: str | None = None) -> tuple[Tensor, Tensor]:
    """Return ``param`` and its gradient, as local tensors if they are DTensors.

    Raises:
        ValueError: the gradient does not have device, shape and kind of dtype of ``param``; or one
            is a DTensor, and the other is not or has another mesh.
    """
    local, grad = to_local(param), param.grad
    if is_dtensor(param) or is_dtensor(grad):
        try:
            grad = dtensors.take_gradient(param)
        except ValueError as reason:
            described = describe_param(param, group, name)
            raise ValueError(f"the gradient of the {described} must {reason}") from None
    assert grad is not None
    fits = grad.shape == local.shape and grad.device == local.device
    if not fits or grad.is_complex() != local.is_complex() or grad.dtype not in SUPPORTED:
        _refuse("gradient", grad, local, describe_param(param, group, name))
    return local, grad


def check_states(param: Any, state: Any, rule: Rule, group: int, name: str | None = None) -> None:
    """Raise ValueError unless each state is missing or matches ``param``."""
    if is_dtensor(param):
        step = rule.matrix_step
        rows = dict.fromkeys(step.row_states, step.row_dims) if step is not None else {}
        misplaced = dtensors.find_misplaced_state(state, param, rows)
        if misplaced is not None:
            raise ValueError(
                f"the state {misplaced[0]!r} of the {describe_param(param, group, name)} must be a "
                f"DTensor with its mesh and placements {misplaced[1]}, as "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict loads it"
            )
        state = dtensors.local_state(state, param)
    local = to_local(param)
    for counter in rule.scalar_state:
        value = state.get(counter)
        if isinstance(value, Tensor) and value.numel() != 1:
            what = f"the state {counter!r} of the {describe_param(param, group, name)}"
            raise ValueError(f"{what} must have one element, got shape {tuple(value.shape)}")
    for state_key in rule.state_keys:
        if state.get(state_key) is not None and not _state_matches(local, state[state_key]):
            _refuse(
                f"state {state_key!r}", state[state_key], local, describe_param(param, group, name)
            )


def _state_matches(param: Tensor, state: Any) -> bool:
    return (
        isinstance(state, Tensor)
        and state.shape == param.shape
        and state.device == param.device
        and state.layout is torch.strided
        and state.is_complex() == param.is_complex()
        and state.dtype in (*SUPPORTED, *CODES)
        and not (_overlaps_itself(state) or state.is_conj() or state.is_neg())
    )


def _refuse(what: str, value: Any, param: Tensor, named: str) -> None:
    got = value if not isinstance(value, Tensor) else describe(value)
    raise ValueError(f"the {what} of the {named} must match {describe(param)}, got {got}")


def describe(tensor: Tensor) -> str:
    """Return shape, dtype and device as text, for messages."""
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
