"""SparseAdam."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.rules import adam
from fused_optim.validation import decay_rates, positive


class SparseAdam(FusedOptimizer):
    """Adam for sparse gradients: the drop-in for ``torch.optim.SparseAdam``.

    A step changes parameter and states only in the rows in the indices of the gradient, as of an
    embedding with ``sparse=True``. Dense gradients are refused.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        betas: decay rates of the first and second moment estimates, each in [0, 1).
        eps: added to the denominator for numerical stability.
        maximize: maximize the objective.
        additions: see :class:`fused_optim.Additions`.

    State: ``exp_avg`` and ``exp_avg_sq`` in the parameter's dtype, 8 bytes a parameter in fp32;
    ``step``, one for all rows.

    Source: torch.optim.SparseAdam,
    https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html
    """

    RULE = adam.SPARSE_ADAM
    WEIGHT_DECAY = "decoupled"  # which it does not have
    BOUNDS: ClassVar = {"lr": positive, "betas": decay_rates(2), "eps": positive}
    REFUSAL = "SparseAdam does not support dense gradients, please consider Adam instead"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, maximize=maximize)
        super().__init__(params, defaults, additions)

    @override
    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        params = list(enumerate(self.param_groups[group_index]["params"]))
        if param.is_sparse:
            found = [[group_index, i] for i, one in params if one.is_sparse]
            raise ValueError(
                f"Sparse params at indices {found}: SparseAdam requires dense parameter tensors"
            )
        if param.is_complex():
            found = [[group_index, i] for i, one in params if one.is_complex()]
            raise ValueError(
                f"Complex params at indices {found}: SparseAdam does not support complex parameters"
            )
        super().check_param(param, name, group_index)
