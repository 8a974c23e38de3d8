"""Adagrad."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options, tensor_checks
from fused_optim.dtensors import local_state, to_local
from fused_optim.formats.conversion import State
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adagrad
from fused_optim.step import scalar_state
from fused_optim.validation import nonnegative


class Adagrad(FusedOptimizer):
    """Adagrad with an L2 penalty: the drop-in for ``torch.optim.Adagrad``.

    A sparse gradient updates only the rows in its indices; it takes no weight decay.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        lr_decay: at step t the step length is ``lr / (1 + (t - 1) * lr_decay)``.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        initial_accumulator_value: first value of the sum; as in torch, one for all groups.
        eps: added to the denominator for numerical stability.
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, fused: accepted for compatibility and ignored: every step is fused.
        additions: see :class:`fused_optim.Additions`.

    State: ``sum`` (of squared gradients) in the parameter's dtype, 4 bytes per element in fp32;
    ``step``. The constructor creates both.

    Source: Duchi et al. 2011, figure 1, https://jmlr.org/papers/v12/duchi11a.html
    """

    RULE = adagrad.ADAGRAD
    BOUNDS: ClassVar = {
        "lr_decay": nonnegative,
        "initial_accumulator_value": nonnegative,
        "eps": nonnegative,
    }

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
        defaults: Group = dict(lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay)
        defaults |= dict(initial_accumulator_value=initial_accumulator_value, foreach=foreach)
        defaults |= dict(maximize=maximize, differentiable=differentiable, fused=fused)
        super().__init__(params, defaults, additions)
        for group in self.param_groups:
            for param in group["params"]:
                if is_lazy(param) or tensor_checks.unsupported_reason(param) is not None:
                    continue  # a parameter without a shape yet, or a frozen one
                state = local_state(self.state[param], param)
                scalar_state.get(state, "step", self.RULE, to_local(param), lambda: 0.0)
                state["sum"] = self.new_state(to_local(param), state, "sum", group)

    def share_memory(self) -> None:
        """Move the states ``sum`` to shared memory, as in torch."""
        for group in self.param_groups:
            for param in group["params"]:
                if "sum" in self.state.get(param, {}):
                    to_local(self.state[param]["sum"]).share_memory_()

    @override
    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor:
        start = float(self.defaults["initial_accumulator_value"])
        value = complex(start, start) if param.is_complex() else start
        return torch.full_like(param, value, memory_format=torch.preserve_format)
