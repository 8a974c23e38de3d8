"""Schedule-free AdamW and SGD."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import schedule_free
from fused_optim.rules.common import Rule


class ScheduleFree(FusedOptimizer):
    """What both share: two modes, and the weights of the average."""

    _wide_counters = True

    def momentum(self, group: Group) -> float:
        """The share of the average x in y."""
        raise NotImplementedError

    def train(self) -> None:
        """Set the parameters to y, where gradients are taken; nothing changes if they are."""
        self._switch(True)

    def eval(self) -> None:
        """Set the parameters to the average x; nothing changes if they are."""
        self._switch(False)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        if self._aside.entered:
            raise RuntimeError("train() or eval() within swap_ema() would move the averages")
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            momentum = float(self.momentum(group))
            share = 1.0 - momentum if train else 1.0 - 1.0 / momentum
            for param in group["params"]:
                z = self.state.get(param, {}).get("z")
                if z is not None:
                    wide = torch.promote_types(param.dtype, torch.float32)
                    start = self._weight(param).to(wide)
                    self._set_weight(param, start + share * (z.to(wide) - start))
            group["train_mode"] = train

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """See the base class.

        Raises:
            RuntimeError: the parameters are in eval mode.
        """
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                "step() in eval mode: the parameters are the average, but the step starts at the "
                "point of the gradient; call optimizer.train() before the forward pass"
            )
        return super().step(closure)

    def new_state(self, param: Tensor, state_key: str, group: Group) -> Tensor | None:
        """See the base class; z starts where the parameter does."""
        return self._weight(param) if state_key == "z" else super().new_state(param, state_key, group)

    def new_counter(self, name: str, group: Group) -> Tensor:
        """Float64: in float32 a sum of millions of weights would stand still."""
        return torch.zeros((), dtype=torch.float64, device="cpu")

    def check(self, group: Group) -> None:
        """See the base class."""
        options.at_least(0, warmup_steps=group["warmup_steps"], r=group["r"])
        options.at_least(0, weight_lr_power=group["weight_lr_power"])
        for name in ("warmup_steps", "r", "weight_lr_power"):
            options.finite(**{name: group[name]})


def above_zero(**values: float) -> None:
    """Raise ValueError unless every value is in (0, 1): else x cannot be told from y and z."""
    for name, value in values.items():
        if not 0.0 < options.number(name, value) < 1.0:
            raise ValueError(f"{name} must be in (0, 1), got {value!r}")


class ScheduleFreeAdamW(ScheduleFree):
    """AdamW that needs no decreasing rate: it averages its iterates instead.

    Call ``optimizer.train()`` before training and ``optimizer.eval()`` before evaluation or saving
    the model: gradients are taken at y, between the iterate z and the average x, which is the
    result. Normalization layers with running statistics need a pass over data after ``eval()``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: share of x in y, in (0, 1), and weight of the past in the uncentered variance, in
            [0, 1).
        eps: added to the root of the variance.
        weight_decay: z moves by ``-lr * weight_decay * y`` each step.
        warmup_steps: steps in which the rate grows linearly.
        r: the weight of step t in the average has the factor ``t ** r``.
        weight_lr_power: and the factor ``max(rates so far) ** weight_lr_power``.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        additions: see :class:`fused_optim.Additions`.

    State: ``z`` and ``exp_avg_sq`` in the parameter's dtype, 8 bytes a parameter in fp32; ``step``,
    ``weight_sum`` and ``lr_max`` in float64. ``train_mode`` is an entry of each group.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Defazio et al. 2024, algorithm 1, https://arxiv.org/abs/2405.15682
    """

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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "foreach": foreach,
            "maximize": maximize,
            "train_mode": True,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group)
        above_zero(**{"betas[0]": group["betas"][0]})
        options.at_least(0, eps=group["eps"])
        super().check(group)

    def momentum(self, group: Group) -> float:
        """See the base class."""
        return float(group["betas"][0])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        if group["weight_decay"] == 0:
            return schedule_free.SCHEDULE_FREE_ADAMW
        return schedule_free.SCHEDULE_FREE_ADAMW_DECAY

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        average = (group["warmup_steps"], group["r"], group["weight_lr_power"])
        return (group["lr"], *group["betas"], group["eps"], group["weight_decay"], *average)

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0


class ScheduleFreeSGD(ScheduleFree):
    """SGD that needs no decreasing rate: it averages its iterates instead.

    Call ``optimizer.train()`` before training and ``optimizer.eval()`` before evaluation or saving
    the model, as with :class:`ScheduleFreeAdamW`.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        momentum: share of x in y, in (0, 1).
        weight_decay: adds ``weight_decay * y`` to the gradient.
        warmup_steps: steps in which the rate grows linearly.
        r: the weight of step t in the average has the factor ``t ** r``.
        weight_lr_power: and the factor ``max(rates so far) ** weight_lr_power``.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        additions: see :class:`fused_optim.Additions`.

    State: ``z`` in the parameter's dtype, 4 bytes a parameter in fp32; ``step``, ``weight_sum`` and
    ``lr_max`` in float64. ``train_mode`` is an entry of each group.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Defazio et al. 2024, equations 2-4, https://arxiv.org/abs/2405.15682
    """

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
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "foreach": foreach,
            "maximize": maximize,
            "train_mode": True,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        above_zero(momentum=group["momentum"])
        super().check(group)

    def momentum(self, group: Group) -> float:
        """See the base class."""
        return float(group["momentum"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return schedule_free.SCHEDULE_FREE_SGD

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        names = ("lr", "momentum", "warmup_steps", "r", "weight_lr_power")
        return tuple(group[name] for name in names)

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return group["weight_decay"]
