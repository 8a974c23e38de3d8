"""Checks of options; every message names the expected value."""

import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fused_optim.formats.registry import HALVES, STATES, WEIGHTS
from fused_optim.options import BACKENDS, Additions, get_option
from fused_optim.rules.common import Rule
from fused_optim.user_warnings import warn_user

Check = Callable[[str, Any], None]  # (name, value): raises if the value is not allowed

# names of options in the messages of torch.optim
TORCH_WORDS = {
    "lr": "learning rate",
    "eps": "epsilon value",
    **{
        name: f"{name} value"
        for name in (
            "alpha",
            "initial_accumulator_value",
            "lr_decay",
            "momentum",
            "momentum_decay",
            "rho",
            "weight_decay",
        )
    },
}


def reject_unknown(additions: Mapping[str, Any]) -> None:
    """Raise TypeError if a keyword argument is not an option of :class:`Additions`."""
    for name in additions:
        if name not in Additions.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}")


def to_number(name: str, value: Any) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: a tensor or an array of more than one element.
        TypeError: neither a number nor a tensor or an array of numbers.
    """
    value = _get_element(name, value)
    refused = TypeError(f"{name} must be a number, got {value!r}")
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise refused
    try:
        return float(value)
    except (TypeError, ValueError) as reason:
        raise refused from reason


def _get_element(name: str, value: Any) -> Any:
    """Return ``value``, or the element of a tensor or an array of one element."""
    shape = getattr(value, "shape", ())
    if math.prod(shape) != 1:
        prefix = f"Tensor {name} must be 1-element: " if isinstance(value, Tensor) else ""
        raise ValueError(f"{prefix}{name} must have one element, got shape {tuple(shape)}")
    return value.item() if shape else value


def _torch_message(name: str, value: Any) -> str:
    """Return torch's message for a bad value, for code that matches it; "" if torch has none."""
    if name.startswith("betas["):
        return f"Invalid beta parameter at index {name[6:-1]}: {value}: "
    return f"Invalid {TORCH_WORDS[name]}: {value}: " if name in TORCH_WORDS else ""


def at_least(bound: float) -> Check:
    """Return a check that raises ValueError unless a value is >= ``bound``."""

    def check(name: str, value: Any) -> None:
        if not to_number(name, value) >= bound:  # not "<": NaN must raise too
            message = _torch_message(name, value)
            raise ValueError(f"{message}{name} must be >= {bound:g}, got {value!r}")

    return check


def at_most(bound: float) -> Check:
    """Return a check that raises ValueError unless a value is <= ``bound``."""

    def check(name: str, value: Any) -> None:
        if not to_number(name, value) <= bound:
            message = _torch_message(name, value)
            raise ValueError(f"{message}{name} must be <= {bound:g}, got {value!r}")

    return check


def number(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless ``value`` is a number."""
    to_number(name, value)


def finite(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a finite number."""
    if not math.isfinite(to_number(name, value)):
        raise ValueError(f"{name} must be finite, got {value!r}")


def unit_interval(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is in [0, 1)."""
    if not 0.0 <= to_number(name, value) < 1.0:
        raise ValueError(f"{_torch_message(name, value)}{name} must be in [0, 1), got {value!r}")


def open_unit_interval(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is in (0, 1)."""
    if not 0.0 < to_number(name, value) < 1.0:
        raise ValueError(f"{name} must be in (0, 1), got {value!r}")


def decay_rates(count: int) -> Check:
    """Return a check that raises ValueError unless a value is ``count`` numbers in [0, 1)."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != count:
            raise ValueError(f"{name} must be {count} numbers, got {value!r}")
        for i, rate in enumerate(value):
            unit_interval(f"{name}[{i}]", rate)

    return check


def optional(check: Check) -> Check:
    """Return ``check`` for options that may be None."""

    def check_given(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_given


def all_of(*checks: Check) -> Check:
    """Return a check that runs all of ``checks`` in order."""

    def check_all(name: str, value: Any) -> None:
        for check in checks:
            check(name, value)

    return check_all


def one_of(choices: Collection[str]) -> Check:
    """Return a check that raises ValueError unless a value is one of ``choices``."""

    def check(name: str, value: Any) -> None:
        if value not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{name} must be one of {listed}, got {value!r}")

    return check


def whole_number(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a whole number in [0, 2**53)."""
    try:
        number = operator.index(_get_element(name, value))
    except TypeError:
        number = -1
    if not 0 <= number < 2**53:
        raise ValueError(f"{name} must be a whole number in [0, 2**53), got {value!r}")


def positive(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is > 0."""
    if not to_number(name, value) > 0:
        raise ValueError(f"{_torch_message(name, value)}{name} must be > 0, got {value!r}")


nonnegative = at_least(0)
COMMON_BOUNDS: dict[str, Check] = {
    "max_grad_norm": optional(nonnegative),
    "max_grad_value": optional(nonnegative),
    "lr": nonnegative,
    "weight_decay": all_of(nonnegative, finite),
    "l1": all_of(nonnegative, finite),
    "ema_decay": optional(unit_interval),
    "nonfinite": one_of(("propagate", "skip")),
    "backend": one_of(BACKENDS),
    "weights": one_of(WEIGHTS),
    "states": one_of(STATES),
    "seed": whole_number,
}


def check_options(group: Mapping[str, Any], bounds: Mapping[str, Check]) -> None:
    """Check the options of a group against ``COMMON_BOUNDS`` and ``bounds``.

    Raises:
        ValueError: an option is out of range, or is not available in a fused step.
        TypeError: an option is not a number.
    """
    if group.get("differentiable"):
        raise ValueError(
            "differentiable must be False, got True: a fused step works in place, outside autograd"
        )
    for name, check in {**COMMON_BOUNDS, **bounds}.items():
        if name in group:  # an addition that is not listed has its default
            check(name, group[name])


def check_max_grad_norm(group: Mapping[str, Any], bound: Any) -> None:
    """Raise ValueError unless the ``max_grad_norm`` of ``group`` is ``bound``, the optimizer's."""
    own = group.get("max_grad_norm", bound)
    if own is bound or (own is not None and bound is not None and float(own) == float(bound)):
        return
    raise ValueError(
        "max_grad_norm is one bound on the norm over all groups: give it to the optimizer, or set "
        f"optimizer.max_grad_norm, not that of a group (got {own!r} for a group and {bound!r} "
        "for the optimizer)"
    )


def check_cautious_decay(rule: Rule, decoupled: bool, group: Mapping[str, Any]) -> None:
    """Raise ValueError if ``cautious_decay`` is set for a rule whose decay is not separate."""
    if get_option(group, "cautious_decay") and not (decoupled and rule.last_pass.decays):
        raise ValueError(
            "cautious_decay must be False for a rule without decoupled weight decay of its own, "
            f"got {group['cautious_decay']!r}: the decay of {rule.update.__name__} is a part of "
            "the update; use AdamW, Lion or Muon"
        )


def warn_of_frozen_states(rule: Rule, hparams: Any, group: Mapping[str, Any]) -> None:
    """Warn of states that cannot decay because the change of each step is rounded away.

    Args:
        rule: update rule of the group.
        hparams: hyperparameters of the rule, an instance of ``rule.hparams``.
        group: parameter group; only its trainable parameters are checked.
    """
    trained = {param.dtype for param in group["params"] if param.requires_grad}
    for state_key, option in rule.nonnegative:
        if option is None or isinstance(getattr(hparams, option), Tensor):
            continue
        for dtype in trained & set(HALVES):
            change = 1.0 - getattr(hparams, option)
            if get_option(group, "states") == "param" and change < torch.finfo(dtype).eps / 4:
                warn_user(
                    f"{state_key} is kept in {dtype} and cannot decay: {option} changes it by "
                    f"{change:.2g} of its value per step, less than half an ulp; pass "
                    "states='fp32', or states='bf16' (stochastic rounding)"
                )


def check_norm_group_of(group: Mapping[str, Any], norm_group: Any) -> None:
    """Raise ValueError if a parameter group has another ``norm_group`` than the optimizer."""
    if group.get("norm_group", norm_group) is not norm_group:
        raise ValueError(
            "norm_group is one process group for all parameters: give it to the optimizer, or set "
            f"optimizer.norm_group, not that of a group (got {group['norm_group']!r})"
        )


def check_norm_group(group: Any) -> None:
    """Raise TypeError unless ``group`` is a process group or None."""
    if group is not None and not hasattr(group, "group_name"):
        raise TypeError(
            "norm_group must be a torch.distributed.ProcessGroup, as new_group() or "
            f"mesh.get_group() return it, got {group!r}"
        )
