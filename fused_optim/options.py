"""Options: those that every optimizer adds to torch.optim's, and checks for all.

Every message names the argument, the bound and the value.
"""

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from torch import Tensor

from fused_optim.backends import BACKENDS, BackendName
from fused_optim.formats.registry import STATES, WEIGHTS


class Additions(TypedDict, total=False):
    """Keyword arguments of every optimizer, beyond those of its torch.optim namesake.

    All but ``max_grad_norm`` may differ between parameter groups. A number may also be a tensor or
    an array of one element, of numpy, say; it is read at each step.

    Attributes:
        max_grad_norm: clip by the norm over the gradients of all groups, with the formula of
            ``torch.nn.utils.clip_grad_norm_``, inside the update. None neither clips nor measures;
            ``math.inf`` measures and never clips. To change it, set ``optimizer.max_grad_norm``.
            It is part of a checkpoint; one without it leaves the bound as it is.
        max_grad_value: clip each element to ``[-max_grad_value, max_grad_value]``, after the norm.
        l1: adds ``l1 * sign(p)`` to the clipped gradient, the gradient of ``l1 * sum(abs(p))``.
        nonfinite: ``"propagate"`` as torch does, or ``"skip"``: a step in which any gradient of
            the optimizer holds an Inf or NaN changes no parameter, state or step count here.
        ema_decay: keep an exponential moving average of the parameters, updated in the same pass:
            ``ema_decay * average + (1 - ema_decay) * p``; None keeps none.
        backend: ``"triton"``, the kernels on a GPU; ``"native"``, the same kernels compiled for
            the CPU (Linux, with the packages of ``fused-optim[cpu]``); ``"reference"``, plain
            torch on any device; or ``"auto"``: Triton where it runs, else native where it can be
            had, else the reference.
        weights: how a bf16 or fp16 parameter is kept: ``"plain"`` as it is; ``"master"`` beside a
            float32; ``"split"`` (bf16) as the float32 whose upper half is the parameter, without
            loss down to 2**-134; ``"split24"`` (bf16) with 8 of the 16 bits of the lower half;
            ``"kahan"`` beside what its rounding lost; ``"stochastic"`` (bf16) rounded
            stochastically. A parameter of float32 or more is plain in any case. What is kept beside
            a parameter stays when that is written from outside, until
            ``optimizer.weights_replaced()``: see docs/formats.md.
        states: how states are kept: ``"param"`` in the parameter's dtype, as torch does;
            ``"fp32"``; ``"bf16"`` rounded stochastically; ``"int8"`` and ``"fp8"`` in 8 bits with a
            scale for each 64, of tensors with fewer than 4096 elements ``"fp32"``. States that are
            places, as the average of the parameters, are float32 in all but ``"param"``.
        seed: of stochastic rounding, a whole number in [0, 2**53).
        count_stalled: count the elements that a step leaves as they are kept: see ``stalled``.
    """

    max_grad_norm: float | None
    max_grad_value: float | None
    l1: float
    nonfinite: str
    ema_decay: float | None
    backend: BackendName
    weights: str
    states: str
    seed: int
    count_stalled: bool


# the first is one bound for all: each group has it, so that it is in every checkpoint and every
# kind of option is read in the same way
GROUP_DEFAULTS: dict[str, Any] = {
    "max_grad_norm": None,
    "max_grad_value": None,
    "l1": 0.0,
    "nonfinite": "propagate",
    "ema_decay": None,
    "backend": "auto",
    "weights": "plain",
    "states": "param",
    "seed": 0,
    "count_stalled": False,
}

# what a checkpoint does not change: it goes on wherever, and in whatever format, this optimizer is
OWN = ("backend", "weights", "states", "count_stalled")

# entries of ``optimizer.state[p]`` that torch.optim does not have, and who has them
EXTRA_STATE_KEYS = {
    "step": "SGD with dampening, and every optimizer with ema_decay or stochastic rounding",
    "ema": "every optimizer with ema_decay",
    "master": "weights='master'",
    "remainder": "weights='split' and 'split24'",
    "compensation": "weights='kahan'",
    "<state>_scale": "states='int8' and 'fp8'",
}

# what a checkpoint means that was written before torch.optim had the option
LEGACY_DEFAULTS: dict[str, Any] = {
    "momentum": 0,
    "nesterov": False,
    "centered": False,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": False,
}


# what torch calls an option in its messages
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


def known(additions: Mapping[str, Any]) -> None:
    """Raise TypeError if a keyword argument is none of :class:`Additions`."""
    for name in additions:
        if name not in Additions.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}")


def number(name: str, value: Any) -> float:
    """``value`` as a float.

    Raises:
        ValueError: a tensor or an array of more than one element.
        TypeError: neither a number nor a tensor or an array of numbers.
    """
    value = _single(name, value)
    refused = TypeError(f"{name} must be a number, got {value!r}")
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise refused
    try:
        return float(value)
    except (TypeError, ValueError) as reason:
        raise refused from reason


def _single(name: str, value: Any) -> Any:
    """``value``, or what a tensor or an array of one element holds."""
    shape = getattr(value, "shape", ())
    if math.prod(shape) != 1:
        prefix = f"Tensor {name} must be 1-element: " if isinstance(value, Tensor) else ""
        raise ValueError(f"{prefix}{name} must have one element, got shape {tuple(shape)}")
    return value.item() if shape else value


def _words(name: str, value: Any) -> str:
    """What torch says of a bad value, for those who match it; nothing of options that it lacks."""
    if name.startswith("betas["):
        return f"Invalid beta parameter at index {name[6:-1]}: {value}: "
    return f"Invalid {TORCHS_NAMES[name]}: {value}: " if name in TORCH_WORDS else ""


def at_least(bound: float, **values: Any) -> None:
    """Raise ValueError unless every value is >= ``bound``."""
    for name, value in values.items():
        if not number(name, value) >= bound:  # written this way round, NaN is refused too
            raise ValueError(f"{_words(name, value)}{name} must be >= {bound:g}, got {value!r}")


def at_most(bound: float, **values: Any) -> None:
    """Raise ValueError unless every value is <= ``bound``."""
    for name, value in values.items():
        if not number(name, value) <= bound:
            raise ValueError(f"{_words(name, value)}{name} must be <= {bound:g}, got {value!r}")


def finite(**values: Any) -> None:
    """Raise ValueError unless every value is a finite number."""
    for name, value in values.items():
        if not math.isfinite(number(name, value)):
            raise ValueError(f"{name} must be finite, got {value!r}")


def in_unit_interval(**values: Any) -> None:
    """Raise ValueError unless every value is in [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= number(name, value) < 1.0:
            raise ValueError(f"{_words(name, value)}{name} must be in [0, 1), got {value!r}")


def betas(group: Mapping[str, Any], count: int = 2) -> None:
    """Raise unless ``group["betas"]`` is ``count`` numbers in [0, 1)."""
    value = group["betas"]
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise ValueError(f"betas must be {count} numbers, got {value!r}")
    in_unit_interval(**{f"betas[{i}]": beta for i, beta in enumerate(value)})


def one_of(choices: Collection[str], **values: Any) -> None:
    """Raise ValueError unless every value is one of ``choices``."""
    for name, value in values.items():
        if value not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def check_common(group: Mapping[str, Any]) -> None:
    """Check the options that every group has.

    Raises:
        ValueError: an option is out of range, or cannot be had in a fused step.
        TypeError: an option is no number.
    """
    if group.get("differentiable"):
        raise ValueError(
            "differentiable must be False, got True: a fused step works in place, outside autograd"
        )
    for name in ("max_grad_norm", "max_grad_value"):
        if group[name] is not None:
            at_least(0, **{name: group[name]})
    at_least(0, lr=group["lr"], weight_decay=group["weight_decay"], l1=group["l1"])
    finite(weight_decay=group["weight_decay"], l1=group["l1"])
    if group["ema_decay"] is not None:
        in_unit_interval(ema_decay=group["ema_decay"])
    one_of(("propagate", "skip"), nonfinite=group["nonfinite"])
    one_of(BACKENDS, backend=group["backend"])
    one_of(WEIGHTS, weights=group["weights"])
    one_of(STATES, states=group["states"])
    whole(seed=group["seed"])


def whole(**values: Any) -> None:
    """Raise ValueError unless every value is a whole number in [0, 2**53)."""
    for name, value in values.items():
        try:
            found = operator.index(_single(name, value))
        except TypeError:
            found = -1
        if not 0 <= found < 2**53:
            raise ValueError(f"{name} must be a whole number in [0, 2**53), got {value!r}")


def check_bound(group: Mapping[str, Any], bound: Any) -> None:
    """Raise ValueError unless the ``max_grad_norm`` of ``group`` is ``bound``, the optimizer's."""
    own = group.get("max_grad_norm", bound)
    if own is bound or (own is not None and bound is not None and float(own) == float(bound)):
        return
    raise ValueError(
        "max_grad_norm is one bound on the norm over all groups: give it to the optimizer, or set "
        f"optimizer.max_grad_norm, not that of a group (got {own!r} beside {bound!r})"
    )
