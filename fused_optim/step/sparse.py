"""Sparse gradients: the rows of a parameter that have one are gathered, updated and written back.

The update of a row needs nothing of the others, so the columns of a step are the rows in the
indices of the coalesced gradient, and its values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_optim.backends.rows import CopyBack, NoiseKey, Row, make_row
from fused_optim.formats.codecs import Codec
from fused_optim.rules.common import Rule
from fused_optim.step.guards import Group


def check_layout(
    gradient: Tensor,
    rule: Rule,
    codecs: tuple[Codec, ...],
    group: Group,
    described: str,
    refusal: str,
) -> None:
    """Raise RuntimeError unless the rule, options and formats can take a gradient of this layout.

    Args:
        gradient: the gradient of a parameter.
        rule: rule of the parameter's group.
        codecs: formats of parameter, gradient and states.
        group: options of the group.
        described: name, shape and group of the parameter, for the message.
        refusal: beginning of the message where the rule does not take the layout.
    """
    named = f"the gradient of the {described} is"
    if gradient.layout is torch.strided:
        if rule.sparse == "required":
            raise RuntimeError(f"{refusal}: {named} dense")
        return
    if rule.sparse == "refused":
        raise RuntimeError(f"{refusal}: {named} sparse ({gradient.layout})")
    for name in ("weight_decay", "l1"):
        if group.get(name, 0) != 0:
            raise RuntimeError(
                f"{name} option is not compatible with sparse gradients: {named} sparse"
            )
    reason = None if rule.sparse == "dense" else _rows_refused_because(gradient, rule, codecs)
    if reason is not None:
        raise RuntimeError(
            f"{named} sparse, and {reason}, or pass a dense gradient: param.grad.to_dense()"
        )


def _rows_refused_because(gradient: Tensor, rule: Rule, codecs: tuple[Codec, ...]) -> str | None:
    """Return the reason why rows cannot be updated by themselves and the remedy, or None."""
    if gradient.sparse_dim() == 0:
        return "has no sparse dimension: give it one"
    if "ema" in rule.state_keys:
        return "the moving average of ema_decay moves in every row: pass ema_decay=None"
    if gradient.is_complex() and rule.state_keys:
        return "complex values would be squared: use torch.view_as_real"
    if any(codec.stochastic for codec in codecs):
        return (
            "stochastic rounding needs the index of each element: pass weights='plain', 'master' "
            "or 'split' and states='param' or 'fp32'"
        )
    return None


def make_sparse_row(
    columns: Sequence[Tensor],
    scalar_state: tuple[Tensor, ...],
    group: int,
    noise_key: NoiseKey,
    grad: int,
    every_row: bool,
) -> Row:
    """Pair the elements of a parameter and its states with those of a sparse gradient.

    Args:
        columns: the parameter (first), its gradient (sparse) and its states.
        scalar_state: 0-dim states of the rule.
        group: index of the parameter group.
        noise_key: key of stochastic rounding.
        grad: index of the gradient among ``columns``.
        every_row: True to update all rows, with a gradient of 0 where the gradient has none.
    """
    if every_row:
        dense = [column.to_dense() if i == grad else column for i, column in enumerate(columns)]
        return make_row(dense, scalar_state, group, noise_key, grad=grad)
    gradient = columns[grad].coalesce()
    rows = gradient.indices().unbind()
    gathered = [
        (gradient.values() if i == grad else column[rows]).contiguous()
        for i, column in enumerate(columns)
    ]
    copies = [
        CopyBack(column, part, rows)
        for i, (column, part) in enumerate(zip(columns, gathered, strict=True))
        if i != grad
    ]
    row = make_row(gathered, scalar_state, group, noise_key, grad=grad)
    return row._replace(copies=tuple(copies))
