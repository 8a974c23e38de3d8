"""The options that every optimizer adds to those of torch.optim, with their defaults."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

BackendName = Literal["auto", "triton", "native", "reference"]
BACKENDS: tuple[BackendName, ...] = ("auto", "triton", "native", "reference")


class Additions(TypedDict, total=False):
    """Additional keyword arguments of every optimizer, compared with its torch.optim counterpart.

    All but ``max_grad_norm`` and ``norm_group`` may differ between parameter groups. A number may
    also be a tensor or a numpy array of one element; it is read at each step.

    Attributes:
        max_grad_norm: bound on the norm over the gradients of all groups, which are clipped as by
            ``torch.nn.utils.clip_grad_norm_``, inside the update. None neither clips nor computes
            the norm; ``math.inf`` computes it and never clips. To change it, set
            ``optimizer.max_grad_norm``. It is saved in checkpoints; loading a checkpoint without it
            leaves the bound as it is.
        norm_group: process group over which the squares of the norm are summed as well, where a
            tensor does not tell how the model is shared: FSDP1, pipeline stages, ZeRO. Every
            parameter must be on one of its ranks only. DTensors need none. It is no option of a
            group, and no checkpoint contains it.
        max_grad_value: bound on the magnitude of each gradient element, which is clipped to
            ``[-max_grad_value, max_grad_value]`` after clipping by the norm.
        l1: weight of an L1 penalty ``l1 * sum(abs(p))``: adds ``l1 * sign(p)`` to the clipped
            gradient.
        nonfinite: treatment of Inf and NaN in a gradient: ``"propagate"`` as torch does, or
            ``"skip"``: a step in which any gradient of the optimizer has an Inf or NaN changes no
            parameter, state or step count of the group.
        ema_decay: decay rate of an exponential moving average of the parameters, updated in the
            same pass: ``ema_decay * average + (1 - ema_decay) * p``; None for no average.
        backend: implementation of the step: ``"triton"``, the kernels on a GPU; ``"native"``, the
            same kernels compiled for the CPU (Linux, with the packages of ``fused-optim[cpu]``);
            ``"reference"``, plain torch on any device; or ``"auto"``: Triton where it runs, else
            native where it is available, else the reference.
        weights: storage format of bf16 or fp16 parameters. ``"plain"``: unchanged. ``"master"``:
            with a float32 master weight. ``"split"`` (bf16): the parameter is the upper half of a
            float32 whose lower 16 bits are stored too, exact down to 2**-134 (FlashOptim's
            error-correction bits). ``"split24"`` (bf16): with 8 of these 16 bits. ``"kahan"``: with
            the rounding error of the last step (Kahan summation). ``"stochastic"`` (bf16): with
            stochastic rounding. Parameters of float32 or more are always plain. The extra bits stay
            when a parameter is written from outside, until ``optimizer.weights_replaced()``: see
            docs/formats.md.
        states: storage format of states. ``"param"``: in the parameter's dtype, as torch does.
            ``"fp32"``. ``"bf16"`` with stochastic rounding. ``"int8"`` and ``"fp8"``: quantized to
            8 bits with a scale for each 64 elements; tensors with fewer than 4096 elements have
            ``"fp32"`` states. States that hold parameter values (the EMA, schedule-free ``z``) stay
            in float32 unless this is ``"param"``.
        cautious_decay: True for decoupled weight decay only where the update moves an element
            toward zero: where it moves it away, decay would work against it. Chen et al. 2025,
            https://arxiv.org/abs/2510.12402
        seed: seed of stochastic rounding, a whole number in [0, 2**53).
        count_stalled: True to count the elements whose stored weight does not change although the
            update is not 0: see ``optimizer.stalled``.
    """

    max_grad_norm: float | None
    norm_group: Any
    max_grad_value: float | None
    l1: float
    nonfinite: str
    ema_decay: float | None
    backend: BackendName
    weights: str
    states: str
    cautious_decay: bool
    seed: int
    count_stalled: bool


# max_grad_norm is one bound for all groups; each group stores it, so that every checkpoint does
GROUP_DEFAULTS: dict[str, Any] = {
    "max_grad_norm": None,
    "max_grad_value": None,
    "l1": 0.0,
    "nonfinite": "propagate",
    "ema_decay": None,
    "backend": "auto",
    "weights": "plain",
    "states": "param",
    "cautious_decay": False,
    "seed": 0,
    "count_stalled": False,
}


def get_option(group: Mapping[str, Any], name: str) -> Any:
    """Return an option of a parameter group; an addition that is not listed has its default.

    So a group of the defaults has the entries of torch.optim, and a checkpoint of either library
    loads into the other, also where every entry must be in both, as in
    ``torch.distributed.checkpoint``.
    """
    return group[name] if name in group else GROUP_DEFAULTS[name]


def drop_defaults(group: dict[str, Any]) -> None:
    """Remove the additions that have their default from a parameter group."""
    for name, default in GROUP_DEFAULTS.items():
        value = group.get(name)
        if name in group and not hasattr(value, "shape") and value == default:
            del group[name]


# options that loading a checkpoint does not change: backend and formats belong to this optimizer
KEPT_ON_LOAD = ("backend", "weights", "states", "count_stalled")

# entries of ``optimizer.state[p]`` that torch.optim does not have, each with its condition
EXTRA_STATE_KEYS = {
    "step": "SGD with dampening, and every optimizer with ema_decay or stochastic rounding",
    "ema": "every optimizer with ema_decay",
    "master": "weights='master'",
    "remainder": "weights='split' and 'split24'",
    "compensation": "weights='kahan'",
    "<state>_scale": "states='int8' and 'fp8'",
}

# values of options for checkpoints that were written before torch.optim had the option
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
