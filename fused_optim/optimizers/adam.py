"""Adam and AdamW."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import adam
from fused_optim.rules.common import Rule


class Adam(FusedOptimizer):
    """Adam with an L2 penalty: the drop-in for ``torch.optim.Adam``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past in the mean and in the uncentered variance, each in [0, 1).
        eps: added to the root of the variance.
        weight_decay: adds ``weight_decay * p`` to the gradient.
        amsgrad: divide by the largest variance so far.
        foreach: accepted, without effect.
        maximize: climb instead of descend.
        capturable: accepted, without effect: the step always is.
        differentiable: must be False.
        fused: accepted, without effect: the step always is.
        decoupled_weight_decay: shrink ``p`` by ``lr * weight_decay`` instead.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` and ``exp_avg_sq`` (with amsgrad, ``max_exp_avg_sq``) in the parameter's
    dtype, 8 (12) bytes a parameter in fp32; ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

    Source: Kingma and Ba 2015, algorithm 1, https://arxiv.org/abs/1412.6980;
    amsgrad: Reddi et al. 2018, algorithm 2, https://openreview.net/forum?id=ryQu7f-RZ
    """

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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, additions)

    def check(self, group: Group) -> None:
        """See the base class."""
        options.betas(group)
        options.at_least(0, eps=group["eps"])

    def rule(self, group: Group) -> Rule:
        """See the base class."""
        return adam.ADAM_AMSGRAD if group["amsgrad"] else adam.ADAM

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """See the base class."""
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return (group["lr"], beta1, beta2, group["eps"], decay)

    def l2(self, group: Group) -> Any:
        """See the base class."""
        return 0.0 if group["decoupled_weight_decay"] else group["weight_decay"]


class AdamW(Adam):
    """Adam with decoupled weight decay: the drop-in for ``torch.optim.AdamW``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: step length; a float, or a tensor of one element that is read at each step.
        betas: weights of the past in the mean and in the uncentered variance, each in [0, 1).
        eps: added to the root of the variance.
        weight_decay: the parameter shrinks by ``lr * weight_decay`` each step.
        amsgrad: divide by the largest variance so far.
        maximize: climb instead of descend.
        foreach: accepted, without effect.
        capturable: accepted, without effect: the step always is.
        differentiable: must be False.
        fused: accepted, without effect: the step always is.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` and ``exp_avg_sq`` (with amsgrad, ``max_exp_avg_sq``) in the parameter's
    dtype, 8 (12) bytes a parameter in fp32; ``step``.

    Raises:
        ValueError: an option is out of range, in the defaults or in a group.
        TypeError: an option is no number.

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
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **additions,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # an Adam's checkpoint goes on as AdamW, as in torch
            group["decoupled_weight_decay"] = True
