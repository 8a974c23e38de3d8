"""The norm over all gradients from its partial sums, and the report of a step, in plain torch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.backends.base import AmpState
from fused_optim.backends.sums import total
from fused_optim.kernels.signatures import CommonOptions
from fused_optim.rules.common import clip_factor, sqrt_rn


class NormState(NamedTuple):
    """The norm and the flags over all gradients, as 0-dim tensors, that a step needs to update.

    Attributes:
        grad_norm: norm of the unscaled gradients, float64; NaN if unknown.
        bad: True after an Inf or NaN.
        unscale: factor that removes the scale of the loss, float64.
        found_inf: 1 if a GradScaler found an Inf or NaN, else 0; float64.
    """

    grad_norm: Tensor
    bad: Tensor
    unscale: Tensor
    found_inf: Tensor


def reduce_partials(
    partials: Tensor | None, amp_state: AmpState, device: torch.device
) -> NormState:
    """Finish the norm.

    Args:
        partials: partial sums, float64 [n, 2]; None if the norm is not needed.
        amp_state: tensors of a GradScaler.
        device: device of the results.
    """
    norm = torch.full((), torch.nan, dtype=torch.float64, device=device)
    bad = torch.zeros((), dtype=torch.bool, device=device)
    if partials is not None:
        squares, nonfinite = total(partials)
        norm, bad = sqrt_rn(squares), nonfinite != 0
    unscale, found_inf = torch.ones_like(norm), torch.zeros_like(norm)
    if amp_state.grad_scale is not None:
        unscale = 1.0 / amp_state.grad_scale.squeeze().double()
    if amp_state.found_inf is not None:
        found_inf = (amp_state.found_inf.squeeze() != 0).double()
    return NormState(norm * unscale, bad, unscale, found_inf)


def form_report(state: NormState, max_grad_norm: Tensor, any_skips: Tensor) -> Tensor:
    """Return the report of a step, float64 [3]: norm, clip factor, and 1 if rows are skipped."""
    factor = clip_factor(state.grad_norm, max_grad_norm)
    return torch.stack([state.grad_norm, factor, state.bad * any_skips + state.found_inf])


def form_report_without_rows(
    partials: Tensor | None, options: CommonOptions, amp_state: AmpState, device: torch.device
) -> Tensor:
    """Return the report of a step that updates nothing on this rank; see :func:`form_report`.

    Args:
        partials: sums over all ranks, float64 [1, 2]; None if the norm is not needed.
        options: options of any group.
        amp_state: tensors of a GradScaler.
        device: device of the report.
    """
    bound, skips = _number(options.max_grad_norm, device), _number(options.any_skips, device)
    return form_report(reduce_partials(partials, amp_state, device), bound, skips)


def _number(value: float | Tensor, device: torch.device) -> Tensor:
    """Return an option as a 0-dim tensor, float64."""
    if isinstance(value, Tensor):
        return value.to(device).double().squeeze()
    return torch.tensor(value, dtype=torch.float64, device=device)
