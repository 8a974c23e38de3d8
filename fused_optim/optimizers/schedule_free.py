"""Schedule-free AdamW and SGD."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.dtensors import local_state, to_local
from fused_optim.formats.conversion import State
from fused_optim.formats.weights import load_weight, store_weight
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import schedule_free
from fused_optim.rules.common import Rule
from fused_optim.validation import (
    all_of,
    decay_rates,
    finite,
    nonnegative,
    open_unit_interval,
)


class ScheduleFree(FusedOptimizer):
    """Base class of the schedule-free optimizers, with train mode and eval mode."""

    BOUNDS: ClassVar = {
        "warmup_steps": all_of(nonnegative, finite),
        "r": all_of(nonnegative, finite),
        "weight_lr_power": all_of(nonnegative, finite),
    }
    _keeps_float64_counts = True

    def momentum(self, group: Group) -> float:
        """Return the weight of the average x in y, in (0, 1)."""
        raise NotImplementedError

    def train(self) -> None:
        """Switch to train mode: set the parameters to y, the point at which gradients are taken."""
        self._switch(True)

    def eval(self) -> None:
        """Switch to eval mode: set the parameters to the average x."""
        self._switch(False)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        if self._swap.active:
            raise RuntimeError(
                "train() or eval() within swap_ema() would move the averages; leave it first"
            )
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            momentum = float(self.momentum(group))
            share = 1.0 - momentum if train else 1.0 - 1.0 / momentum
            for param in dict.fromkeys(group["params"]):
                state = local_state(self.state.get(param, {}), param)
                if "z" in state:
                    local = to_local(param)
                    wide = torch.promote_types(param.dtype, torch.float32)
                    start, z = load_weight(state, local).to(wide), state["z"].to(wide)
                    store_weight(state, local, start + share * (z - start))
            group["train_mode"] = train

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                "step() in eval mode: the parameters are the average, but the step starts at the "
                "point of the gradient; call optimizer.train() before the forward pass"
            )
        return super().step(closure)

    @override
    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor | None:
        if state_key == "z":  # z starts at the parameter
            return load_weight(state, param)
        return super().new_state(param, state, state_key, group)

    @override
    def new_scalar_state(self, name: str, group: Group) -> Tensor:
        # in float32 the sum of weights would stop growing after millions of steps
        return torch.zeros((), dtype=torch.float64, device="cpu")


class ScheduleFreeAdamW(ScheduleFree):
    """AdamW without a learning rate schedule: it averages its iterates instead.

    Call ``optimizer.train()`` before training and ``optimizer.eval()`` before evaluation or saving
    the model: gradients are taken at y, between the iterate z and the average x, which is the
    result. Normalization layers with running statistics need a pass over data after ``eval()``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: weight of x in y, in (0, 1), and decay rate of the second moment estimate, in
            [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight decay: each step subtracts ``lr * weight_decay * y`` from z.
        warmup_steps: number of steps in which the learning rate grows linearly.
        r: exponent of the factor ``t ** r`` in the weight of step t in the average.
        weight_lr_power: exponent of the factor ``max(rates so far) ** weight_lr_power`` in it.
        foreach: accepted for compatibility and ignored.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    State: ``z`` (iterate) and ``exp_avg_sq`` (second moment) in the parameter's dtype, 8 bytes per
    element in fp32; ``step``, ``weight_sum`` and ``lr_max`` in float64. ``train_mode`` is an entry
    of each group.

    Source: Defazio et al. 2024, algorithm 1, https://arxiv.org/abs/2405.15682
    """

    WEIGHT_DECAY = "decoupled"
    BOUNDS: ClassVar = {**ScheduleFree.BOUNDS, "betas": decay_rates(2), "eps": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
        *,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults |= dict(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        defaults |= dict(foreach=foreach, maximize=maximize, train_mode=True)
        super().__init__(params, defaults, additions)

    @override
    def check(self, group: Group) -> None:
        # with 0 or 1, x could not be computed from y and z
        open_unit_interval("betas[0]", group["betas"][0])

    @override
    def momentum(self, group: Group) -> float:
        return float(group["betas"][0])

    @override
    def rule(self, group: Group) -> Rule:
        if group["weight_decay"] == 0:
            return schedule_free.SCHEDULE_FREE_ADAMW
        return schedule_free.SCHEDULE_FREE_ADAMW_DECAY


class ScheduleFreeSGD(ScheduleFree):
    """SGD without a learning rate schedule: it averages its iterates instead.

    Call ``optimizer.train()`` before training and ``optimizer.eval()`` before evaluation or saving
    the model, as with :class:`ScheduleFreeAdamW`.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        momentum: weight of x in y, in (0, 1).
        weight_decay: adds ``weight_decay * y`` to the gradient.
        warmup_steps: number of steps in which the learning rate grows linearly.
        r: exponent of the factor ``t ** r`` in the weight of step t in the average.
        weight_lr_power: exponent of the factor ``max(rates so far) ** weight_lr_power`` in it.
        foreach: accepted for compatibility and ignored.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    State: ``z`` (iterate) in the parameter's dtype, 4 bytes per element in fp32; ``step``,
    ``weight_sum`` and ``lr_max`` in float64. ``train_mode`` is an entry of each group.

    Source: Defazio et al. 2024, equations 2-4, https://arxiv.org/abs/2405.15682
    """

    RULE = schedule_free.SCHEDULE_FREE_SGD
    BOUNDS: ClassVar = {**ScheduleFree.BOUNDS, "momentum": open_unit_interval}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
        *,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        defaults |= dict(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        defaults |= dict(foreach=foreach, maximize=maximize, train_mode=True)
        super().__init__(params, defaults, additions)

    @override
    def momentum(self, group: Group) -> float:
        return float(group["momentum"])
