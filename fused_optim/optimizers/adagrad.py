"""Adagrad."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options, tensors
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adagrad
from fused_optim.rules.common import Rule


class Adagrad(FusedOptimizer):
    """Adagrad with an L2 penalty: the drop-in for ``torch.optim.Adagrad``, for dense gradients.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        lr_decay: at step t the step length is ``lr / (1 + (t - 1) * lr_decay)``.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        initial_accumulator_value: start of the sum; as in torch, one for all groups.
        eps: added to the root of the sum.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        differentiable: must be False.
        fused: accepted, without effect: the step always is.
        additions: see :class:`fused_optim.Additions`.

    State: ``sum`` in the parameter's dtype, 4 bytes a parameter in fp32; ``step``. Created here,
    not at the first step.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Duchi et al. 2011, figure 1, https://jmlr.org/papers/v12/duchi11a.html
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, additions)
        for group in self.param_groups:
            for param in group["params"]:
                if is_lazy(param) or tensors.why_not(param) is not None:
                    continue  # of no shape yet, or frozen
                self._counter(param, adagrad.ADAGRAD, "step", group)
                self.state[param]["sum"] = self.new_state(param, "sum", group)

    def share_memory(self) -> None:
        """Move the sums to memory that processes share."""
        for group in self.param_groups:
            for param in group["params"]:
                if "sum" in self.state.get(param, {}):
                    self.state[param]["sum"].share_memory_()

    def check(self, group: Group) -> None:
        """See the base class."""
        names = ("lr_decay", "initial_accumulator_value", "eps")
        options.at_least(0, **{name: group[name] for name in names})

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return adagrad.ADAGRAD

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        return (group["lr"], group["lr_decay"], group["eps"])

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return group["weight_decay"]

    def new_state(self, param: Tensor, state_key: str, group: Group) -> Tensor:
        """See the base class."""
        start = float(self.defaults["initial_accumulator_value"])
        value = complex(start, start) if param.is_complex() else start
        return torch.full_like(param, value, memory_format=torch.preserve_format)
