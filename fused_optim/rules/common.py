"""What the rules share: the record of a rule, exact building blocks, the gradient stage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

INV_LN2 = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # ln(2) in two parts: 21 zeros at its end, and the rest
LN2_LOW = 1.9082149292705877e-10

State = tuple[Tensor, ...]


class Reduction(NamedTuple):
    """Sums over each tensor that a rule needs before its update.

    Attributes:
        measure: ``(p, g, state, h) -> quantities``, elementwise, with the scalars known so far.
        finish: ``(sums, numel, h) -> scalars``, in float64: the last scalars of ``h``.
        quantities: how many are summed.
        scalars: how many ``finish`` forms.
    """

    measure: Callable[..., tuple[Tensor, ...]]
    finish: Callable[..., tuple[Tensor, ...]]
    num_sums: int
    scalars: int


class Rule(NamedTuple):
    """One algorithm. The Triton page of the same name has functions of the same names.

    Attributes:
        update: ``(p, g, state, h) -> (p, state)``.
        scalars: ``(hyper, step) -> h``, in float64.
        hyper: the options that ``scalars`` takes, a NamedTuple class.
        h: the scalars that ``update`` takes, a NamedTuple class.
        slots: names of the state, as torch.optim names them, in the order of ``state``.
        counters: names of 0-dim states that each update moves on: ``"step"`` first, if any. With
            more than that, ``scalars`` is ``(hyper, step, counters[1:]) -> (counters[1:], h)``.
        per_tensor: what must be summed over the tensor first; it forms the last of ``h``.
        unsigned: the slots that are never negative, and the option that says how much of its past
            such a slot keeps, or None.
        exact: the slots that formats of fewer bits keep in float32: places in the space of the
            parameters, and terms of differences.
    """

    update: Callable[[Tensor, Tensor, State, Any], tuple[Tensor, State]]
    scalars: Callable[..., Any]
    hparams: Any
    s: Any
    state_keys: tuple[str, ...] = ()
    scalar_state: tuple[str, ...] = ()
    reduction: Reduction | None = None
    nonnegative: tuple[tuple[str, str | None], ...] = ()
    fp32_keys: tuple[str, ...] = ()

    @property
    def num_elementwise_scalars(self) -> int:
        """How many of the scalars are known before anything is measured."""
        late = 0 if self.reduction is None else self.reduction.scalars
        return len(self.s._fields) - late


def sqrt_rn(x: Tensor) -> Tensor:
    """IEEE square root: what ``torch.sqrt`` gives on the CPU depends on the processor.

    Where torch calls a library of vector functions for it, one result in six may be a bit off.
    """
    if x.device.type == "cpu":
        result = torch.empty_like(x)
        with np.errstate(invalid="ignore"):  # of a negative number: NaN, without a warning
            np.sqrt(x.numpy(), out=result.numpy())
        return result
    return x.sqrt()


def decay(x: Tensor, rate: Tensor) -> Tensor:
    """``(1 - rate) * x`` without forming ``1 - rate``; an infinite x stays as it is."""
    bound = torch.finfo(x.dtype).max
    return x - rate * x.clamp(-bound, bound)


def pow_int(base: Tensor, step: Tensor) -> Tensor:
    """``base ** step`` in float64 by squaring, for a whole number ``step`` >= 0."""
    exponent = step.long()
    result = torch.ones_like(base)
    # other devices must not be waited for: 32 squarings are enough for any count
    bits = int(exponent.max()).bit_length() if step.device.type == "cpu" else 32
    for _ in range(bits):
        result = torch.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


def exp(x: Tensor) -> Tensor:
    """``e ** x`` in float64, of + - * / alone: libraries differ in the last bit."""
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
    """Natural logarithm of ``x`` > 0 in float64, of + - * / alone."""
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
    """``base ** exponent`` in float64, for ``base`` >= 0 and any ``exponent`` >= 0."""
    positive = exp(exponent * log(torch.where(base > 0, base, 1.0)))
    return torch.where(base > 0, positive, torch.where(exponent > 0, 0.0, 1.0))


def clip_factor(norm: Tensor, max_norm: Tensor) -> Tensor:
    """The factor of ``torch.nn.utils.clip_grad_norm_``; an infinite bound never clips."""
    factor = max_norm / (norm + 1e-6)
    return torch.where((factor > 1.0) | (max_norm == torch.inf), 1.0, factor)


class Gradient(NamedTuple):
    """Scalars of :func:`gradient`.

    Attributes:
        factor: unscales, clips by the norm, and turns the sign for ``maximize``.
        limit: no element is larger than this.
        l2: weight of ``p``, the gradient of ``l2 / 2 * sum(p ** 2)``.
        l1: weight of ``sign(p)``, the gradient of ``l1 * sum(abs(p))``.
    """

    factor: Tensor
    limit: float
    l2: float
    l1: float


def gradient(g: Tensor, p: Tensor, common: Gradient) -> Tensor:
    """The gradient a rule sees: scaled, clipped by value, with the L2 and L1 terms."""
    factor, limit, l2, l1 = common
    g = factor * g
    if limit < torch.inf:
        g = g.clamp(-limit, limit)
    # a term that is off is left out: 0 * inf would be NaN
    if l2 != 0:
        g = g + l2 * p
    if l1 != 0:
        g = g + l1 * ((p > 0).to(p.dtype) - (p < 0).to(p.dtype))
    return g


def ema_update(ema: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """The exponential moving average of the parameter; its first value is the parameter."""
    return torch.where(weight == 1.0, p, ema + weight * (p - ema))
