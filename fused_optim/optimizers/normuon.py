"""NorMuon."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.matrix.newton_schulz import DEFAULT_COEFFICIENTS
from fused_optim.matrix.row_normalization import RowNormalization, normalize_rows
from fused_optim.optimizers.base import Group
from fused_optim.optimizers.mixed import MixedOptimizer
from fused_optim.optimizers.muon import Coefficients, Muon
from fused_optim.rules.common import Rule
from fused_optim.validation import unit_interval


class NorMuon(Muon):
    """NorMuon: Muon whose rows, the neurons, have steps of equal size.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        weight_decay: decoupled weight decay: each step subtracts ``lr * weight_decay * p``.
        momentum: decay rate of the momentum.
        beta2: decay rate of the second moment of each row of the orthogonalized momentum.
        adjust_lr_fn: norm of the step of each matrix: ``"match_rms_adamw"``, 0.2 for each element,
            or that of Muon with ``"original"``.
        nesterov, ns_coefficients, eps, ns_steps, maximize, ns_algorithm, ns_dtype: see
            :class:`fused_optim.Muon`.
        ns_max_batch, ns_products, batch_dims, split, heads: see :class:`fused_optim.Muon`.
        additions: see :class:`fused_optim.Additions`.

    State: ``momentum_buffer`` in the parameter's dtype, 4 bytes per element in fp32;
    ``row_second_moment``, float32, 4 bytes per row: ``[..., rows, 1]``.

    Source: Li et al. 2025, algorithm 1, https://arxiv.org/abs/2510.05491
    """

    REFUSAL = "NorMuon does not support sparse gradients"
    OWN_BOUNDS: ClassVar = {**Muon.OWN_BOUNDS, "beta2": unit_interval}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = DEFAULT_COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        *,
        maximize: bool = False,
        ns_algorithm: Literal["auto", "standard", "gram"] = "auto",
        ns_dtype: torch.dtype | None = None,
        ns_max_batch: int | None = None,
        ns_products: Literal["torch", "quack"] = "torch",
        batch_dims: int | None = None,
        split: Sequence[int] | None = None,
        heads: int = 1,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, beta2=beta2)
        defaults |= dict(nesterov=nesterov, ns_coefficients=ns_coefficients, eps=eps)
        defaults |= dict(ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn, maximize=maximize)
        defaults |= dict(ns_algorithm=ns_algorithm, ns_dtype=ns_dtype, ns_max_batch=ns_max_batch)
        defaults |= dict(ns_products=ns_products)
        defaults |= dict(batch_dims=batch_dims, split=split, heads=heads)
        MixedOptimizer.__init__(self, params, defaults, additions)

    @override
    def own_rule(self, group: Group) -> Rule:
        rule = super().own_rule(group)
        assert rule.matrix_step is not None
        settings = RowNormalization(rule.matrix_step.settings, float(group["beta2"]))
        step = rule.matrix_step._replace(transform=normalize_rows, settings=settings)
        step = step._replace(row_states=("row_second_moment",), factor=None)
        return rule._replace(matrix_step=step)
