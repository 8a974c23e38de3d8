"""Building blocks of the rules: the class Rule, exact functions, gradient preprocessing."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fused_optim.kernels.signatures import CommonScalars
from fused_optim.private_api import has_data

INV_LN2 = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # the high part of ln(2), which ends in 21 zero bits
LN2_LOW = 1.9082149292705877e-10

State = tuple[Tensor, ...]


class Reduction(NamedTuple):
    """Sums over each tensor that a rule needs before its update.

    Attributes:
        map_fn: elementwise function ``(p, g, state, scalars) -> terms``.
        finalize_fn: function ``(sums, numel, scalars) -> scalars``, in float64; it sets the scalars
            that have a default.
        num_sums: number of terms, each of which is summed over the tensor.
    """

    map_fn: Callable[..., tuple[Tensor, ...]]
    finalize_fn: Callable[..., Any]
    num_sums: int


class MatrixStep(NamedTuple):
    """An operation on whole matrices between two elementwise passes of a rule.

    The first pass is the rule itself: its update returns, in place of the new parameter, the
    direction, which is stored in a workspace. ``transform`` replaces the matrices in it, and the
    second pass reads them as the gradient.

    Attributes:
        transform: function ``(matrices, states, settings) -> (matrices, states)`` on a batch
            ``[k, rows, columns]``, whose states are ``[k, rows, 1]``, float32.
        settings: settings of ``transform``, a NamedTuple with the fields ``dtype`` (of the
            directions; None for bf16, float32 on the CPU) and ``max_batch`` (maximum of k or None).
        cut: how a parameter is divided into matrices: a :class:`fused_optim.matrix.blocks.Cut`.
        second: rule of the second pass, without states.
        row_states: names of the states of ``transform``, one float32 for each row of a matrix.
        factor: function ``(rows, columns, settings) -> factor`` of the result. The transform then
            ignores columns of zeros, and it transposes its result if its argument is; None if
            ``transform`` applies a factor itself.
    """

    transform: Callable[[Tensor, State, Any], tuple[Tensor, State]]
    settings: Any
    cut: Any
    second: Any
    row_states: tuple[str, ...] = ()
    factor: Callable[[int, int, Any], float] | None = None

    @property
    def row_dims(self) -> int:
        """Number of dims of a parameter up to the rows of its matrices."""
        return (self.cut.batch_dims or 0) + 1

    def row_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a state of rows, ``[..., rows, 1]``, of a parameter of ``shape``."""
        return (*shape[: self.row_dims], *[1] * (len(shape) - self.row_dims))


class Rule(NamedTuple):
    """The update rule of an optimizer. Its Triton counterpart has functions of the same names.

    Attributes:
        update: function ``(p, g, state, scalars) -> (p, state)``, elementwise.
        form_scalars: function ``(hparams, step) -> scalars``, in float64; with more than one 0-dim
            state, ``(hparams, step, scalar_state[1:]) -> (scalar_state[1:], scalars)``.
        hparams: NamedTuple class of the hyperparameters that ``form_scalars`` takes.
        scalars: NamedTuple class of the scalars that ``update`` takes.
        state_keys: names of the states in torch.optim's state dict, in the order of ``state``.
        scalar_state: names of the 0-dim states that each update advances: ``"step"`` first, if any.
        reduction: sums over the whole tensor from which the last scalars are formed, or None.
        nonnegative: ``(state key, name of its decay rate)`` for each state that is never negative;
            the name is None if the state never decays.
        fp32_keys: names of states that narrower formats store in float32: values of parameters, and
            terms of differences.
        sparse: layouts of gradients that torch.optim takes. ``"refused"``: dense ones; ``"rows"``:
            sparse ones too, and the update of a row without a gradient changes nothing;
            ``"dense"``: sparse ones too, but every row moves; ``"required"``: sparse ones, by rows.
        late_keys: states that torch.optim creates within its first update, not before it, so that
            each occurrence of a duplicate parameter starts them anew in its first step.
        matrix_step: operation on matrices after ``update``, and the pass that follows it, or None.
        decays: True if the scalar ``decay`` is the share of the parameter that decoupled weight
            decay subtracts, in addition to the update.
    """

    update: Callable[[Tensor, Tensor, State, Any], tuple[Tensor, State]]
    form_scalars: Callable[..., Any]
    hparams: Any
    scalars: Any
    state_keys: tuple[str, ...] = ()
    scalar_state: tuple[str, ...] = ()
    reduction: Reduction | None = None
    nonnegative: tuple[tuple[str, str | None], ...] = ()
    fp32_keys: tuple[str, ...] = ()
    sparse: Literal["refused", "rows", "dense", "required"] = "refused"
    late_keys: tuple[str, ...] = ()
    matrix_step: MatrixStep | None = None
    decays: bool = False

    @property
    def last_pass(self) -> "Rule":
        """The rule of the last elementwise pass, which updates the parameter."""
        if self.matrix_step is None:
            return self
        second: Rule = self.matrix_step.second
        return second

    @property
    def num_elementwise_scalars(self) -> int:
        """Number of scalars that do not depend on sums over the tensor."""
        return len(self.scalars._fields) - len(self.scalars._field_defaults)


def sqrt_rn(x: Tensor) -> Tensor:
    """Take the IEEE 754 square root: ``torch.sqrt`` on the CPU depends on the processor.

    Where torch calls a library of vector functions, one result in six may differ in the last bit.
    """
    if x.device.type == "cpu" and has_data(x):
        result = torch.empty_like(x)
        with np.errstate(invalid="ignore"):  # NaN for a negative number, without a warning
            np.sqrt(x.numpy(), out=result.numpy())
        return result
    return x.sqrt()


def decay(x: Tensor, rate: Tensor) -> Tensor:
    """Return ``(1 - rate) * x`` without forming ``1 - rate``; an infinite x is unchanged."""
    bound = torch.finfo(x.dtype).max
    return x - rate * x.clamp(-bound, bound)


def cautious_decay(p: Tensor, new: Tensor, rate: Tensor) -> Tensor:
    """Decay ``new``, the update of ``p``, where the update moves p toward zero or not at all."""
    bound = torch.finfo(p.dtype).max
    agrees = torch.where(p > 0, new <= p, new >= p)
    return torch.where(agrees, new - rate * p.clamp(-bound, bound), new)


def pow_int(base: Tensor, step: Tensor) -> Tensor:
    """Compute ``base ** step`` in float64 by squaring, for a whole number ``step`` >= 0."""
    exponent = step.long()
    result = torch.ones_like(base)
    readable = step.device.type == "cpu" and has_data(step)
    # no synchronization with other devices: 32 squarings are enough for any step count
    bits = int(exponent.max()).bit_length() if readable else 32
    for _ in range(bits):
        result = torch.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


def exp(x: Tensor) -> Tensor:
    """Compute ``e ** x`` in float64 from + - * / alone: libraries differ in the last bit."""
    twos = (x * INV_LN2 + torch.where(x < 0, -0.5, 0.5)).long().double()
    # the first product is exact: LN2_HIGH ends in zeros
    rest = (x - twos * LN2_HIGH) - twos * LN2_LOW
    result = torch.ones_like(x)
    for n in range(14, 0, -1):
        # on a GPU torch multiplies by the reciprocal of a divisor that is a number
        result = 1.0 + rest / torch.full_like(rest, n) * result
    scale = pow_int(torch.full_like(x, 2.0), twos.abs())
    return torch.where(twos < 0, result / scale, result * scale)


def log(x: Tensor) -> Tensor:
    """Compute the natural logarithm of ``x`` > 0 in float64 from + - * / alone."""
    small = x < 1.0
    x = torch.where(small, 1.0 / x, x)
    twos = torch.zeros_like(x)
    for i in range(9, -1, -1):
        large = x >= 2.0 ** (2**i)
        x = torch.where(large, x / 2.0 ** (2**i), x)
        twos = torch.where(large, twos + 2.0**i, twos)
    ratio = (x - 1.0) / (x + 1.0)
    series = torch.zeros_like(x)
    for n in range(35, -1, -2):
        series = series * (ratio * ratio) + 1.0 / n
    result = twos * LN2_HIGH + (twos * LN2_LOW + 2.0 * ratio * series)
    return torch.where(small, -result, result)


def pow_real(base: Tensor, exponent: Tensor) -> Tensor:
    """Compute ``base ** exponent`` in float64, for ``base`` >= 0 and any ``exponent`` >= 0."""
    positive = exp(exponent * log(torch.where(base > 0, base, 1.0)))
    return torch.where(base > 0, positive, torch.where(exponent > 0, 0.0, 1.0))


def clip_factor(norm: Tensor, max_norm: Tensor) -> Tensor:
    """Return the factor of ``torch.nn.utils.clip_grad_norm_``; an infinite bound never clips."""
    factor = max_norm / (norm + 1e-6)
    return torch.where((factor > 1.0) | (max_norm == torch.inf), 1.0, factor)


def preprocess_grad(g: Tensor, p: Tensor, s: CommonScalars) -> Tensor:
    """Scale the gradient, clip it by value, add the L2 and L1 terms.

    ``max_grad_value``, ``l2`` and ``l1`` are floats here, so that a term with weight 0 is omitted.
    """
    g = s.factor * g
    if s.max_grad_value < torch.inf:
        g = g.clamp(-s.max_grad_value, s.max_grad_value)
    # a term with weight 0 is omitted: 0 * inf would be NaN
    if s.l2 != 0:
        g = g + s.l2 * p
    if s.l1 != 0:
        g = g + s.l1 * ((p > 0).to(p.dtype) - (p < 0).to(p.dtype))
    return g


def ema_update(ema: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """Update the exponential moving average of a parameter; its first value is the parameter."""
    return torch.where(weight == 1.0, p, ema + weight * (p - ema))
