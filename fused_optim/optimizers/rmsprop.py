"""RMSprop."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules import rmsprop
from fused_optim.rules.common import Rule
from fused_optim.validation import nonnegative


class RMSprop(FusedOptimizer):
    """RMSprop with an L2 penalty: the drop-in for ``torch.optim.RMSprop``.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        alpha: decay rate of the averages (smoothing constant).
        eps: added to the denominator for numerical stability.
        weight_decay: L2 penalty: adds ``weight_decay * p`` to the gradient.
        momentum: momentum factor; the buffer accumulates steps, not gradients.
        centered: divide by an estimate of the standard deviation of the gradient (centered
            RMSprop).
        maximize: maximize the objective.
        differentiable: must be False.
        capturable, foreach: accepted for compatibility and ignored: every step is capturable.
        additions: see :class:`fused_optim.Additions`.

    State: ``square_avg`` (second moment), with momentum ``momentum_buffer`` and with centered
    ``grad_avg`` (first moment), in the parameter's dtype, each 4 bytes per element in fp32;
    ``step``.

    Source: Hinton 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf;
    centered: Graves 2013, section 4.2, https://arxiv.org/abs/1308.0850
    """

    BOUNDS: ClassVar = {"eps": nonnegative, "momentum": nonnegative, "alpha": nonnegative}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered)
        defaults |= dict(weight_decay=weight_decay, capturable=capturable, foreach=foreach)
        defaults |= dict(maximize=maximize, differentiable=differentiable)
        super().__init__(params, defaults, additions)

    @override
    def rule(self, group: Group) -> Rule:
        if group["centered"]:
            has_momentum = group["momentum"] > 0
            return rmsprop.RMSPROP_CENTERED_MOMENTUM if has_momentum else rmsprop.RMSPROP_CENTERED
        return rmsprop.RMSPROP_MOMENTUM if group["momentum"] > 0 else rmsprop.RMSPROP
