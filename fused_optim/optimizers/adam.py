"""Adam and AdamW."""

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adam
from fused_optim.rules.common import Rule
from fused_optim.validation import decay_rates, nonnegative


class Adam(FusedOptimizer):
    """Adam with an L2 penalty: the drop-in for ``torch.optim.Adam``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        amsgrad: use the maximum of all second moment estimates so far (AMSGrad).
        maximize: maximize the objective.
        differentiable: must be False.
        decoupled_weight_decay: use decoupled weight decay instead of the L2 penalty: each step
            subtracts ``lr * weight_decay * p``, as in AdamW.
        foreach, capturable, fused: accepted for compatibility and ignored:
            every step is fused and capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` (first moment) and ``exp_avg_sq`` (second moment) (with amsgrad also its
    maximum, ``max_exp_avg_sq``) in the parameter's dtype, 8 (12) bytes per element in fp32;
    ``step``.

    Source: Kingma and Ba 2015, algorithm 1, https://arxiv.org/abs/1412.6980;
    amsgrad: Reddi et al. 2018, algorithm 2, https://openreview.net/forum?id=ryQu7f-RZ
    """

    WEIGHT_DECAY = "switch"
    REFUSAL = "Adam does not support sparse gradients, please consider SparseAdam instead"
    BOUNDS: ClassVar = {"betas": decay_rates(2), "eps": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad
        )
        defaults |= dict(maximize=maximize, foreach=foreach, capturable=capturable)
        defaults |= dict(differentiable=differentiable, fused=fused)
        defaults |= dict(decoupled_weight_decay=decoupled_weight_decay)
        super().__init__(params, defaults, additions)

    @override
    def rule(self, group: Group) -> Rule:
        return adam.ADAM_AMSGRAD if group["amsgrad"] else adam.ADAM


class AdamW(Adam):
    """Adam with decoupled weight decay: the drop-in for ``torch.optim.AdamW``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight decay: each step subtracts ``lr * weight_decay * p``.
        amsgrad: use the maximum of all second moment estimates so far (AMSGrad).
        maximize: maximize the objective.
        differentiable: must be False.
        foreach, capturable, fused: accepted for compatibility and ignored:
            every step is fused and capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` (first moment) and ``exp_avg_sq`` (second moment) (with amsgrad also its
    maximum, ``max_exp_avg_sq``) in the parameter's dtype, 8 (12) bytes per element in fp32;
    ``step``.

    Source: Loshchilov and Hutter 2019, algorithm 2, https://arxiv.org/abs/1711.05101
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **additions: Unpack[options.Additions],
    ) -> None:
        flags: Group = dict(maximize=maximize, differentiable=differentiable, foreach=foreach)
        flags |= dict(capturable=capturable, fused=fused, decoupled_weight_decay=True)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **flags, **additions)

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint of Adam continues as AdamW, as in torch
            group["decoupled_weight_decay"] = True
