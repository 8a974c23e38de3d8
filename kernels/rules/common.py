"""Building blocks of the rules in Triton: the counterpart of fused_optim/rules/common.py."""

import triton
import triton.language as tl

FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
FLOAT64_MAX = tl.constexpr(1.7976931348623157e308)
INV_LN2 = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.6931471803691238)  # ln(2) in two parts: see the counterpart
LN2_LOW = tl.constexpr(1.9082149292705877e-10)


@triton.jit
def div_rn(x, y):
    """Divide as IEEE 754: ``/`` is approximate in float32, ``tl.div_rn`` has no float64."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def sqrt_rn(x):
    """Take the IEEE root: ``tl.sqrt`` is approximate in float32, ``tl.sqrt_rn`` has no float64."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def decay(x, rate):
    """Return ``(1 - rate) * x`` without forming ``1 - rate``; an infinite x is unchanged."""
    if x.dtype == tl.float64:
        bound: tl.constexpr = FLOAT64_MAX
    else:
        bound: tl.constexpr = FLOAT32_MAX
    return x - rate * tl.minimum(tl.maximum(x, -bound), bound)


@triton.jit
def cautious_decay(p, new, rate):
    """Decay ``new``, the update of ``p``, where the update moves p toward zero or not at all."""
    if p.dtype == tl.float64:
        bound: tl.constexpr = FLOAT64_MAX
    else:
        bound: tl.constexpr = FLOAT32_MAX
    agrees = tl.where(p > 0, new <= p, new >= p)
    return tl.where(agrees, new - rate * tl.minimum(tl.maximum(p, -bound), bound), new)


@triton.jit
def pow_int(base, step):
    """Compute ``base ** step`` in float64 by squaring, for a whole number ``step`` >= 0."""
    exponent = step.to(tl.int64)
    result = base * 0.0 + 1.0
    while tl.max(exponent, 0) > 0:
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


@triton.jit
def exp(x):
    """Compute ``e ** x`` in float64 from + - * / alone: libraries differ in the last bit."""
    twos = (x * INV_LN2 + tl.where(x < 0, -0.5, 0.5)).to(tl.int64).to(tl.float64)
    # the first product is exact: LN2_HIGH ends in zeros
    rest = (x - twos * LN2_HIGH) - twos * LN2_LOW
    result = x * 0.0 + 1.0
    for n in tl.static_range(14, 0, -1):
        result = 1.0 + rest / n * result
    scale = pow_int(x * 0.0 + 2.0, tl.abs(twos))
    return tl.where(twos < 0, result / scale, result * scale)


@triton.jit
def log(x):
    """Compute the natural logarithm of ``x`` > 0 in float64 from + - * / alone."""
    small = x < 1.0
    x = tl.where(small, 1.0 / x, x)
    twos = x * 0.0
    for i in tl.static_range(9, -1, -1):
        large = x >= 2.0 ** (2**i)
        x = tl.where(large, x / 2.0 ** (2**i), x)
        twos = tl.where(large, twos + 2.0**i, twos)
    ratio = (x - 1.0) / (x + 1.0)
    series = x * 0.0
    for n in tl.static_range(35, -1, -2):
        series = series * (ratio * ratio) + 1.0 / n
    result = twos * LN2_HIGH + (twos * LN2_LOW + 2.0 * ratio * series)
    return tl.where(small, -result, result)


@triton.jit
def pow_real(base, exponent):
    """Compute ``base ** exponent`` in float64, for ``base`` >= 0 and any ``exponent`` >= 0."""
    positive = exp(exponent * log(tl.where(base > 0, base, 1.0)))
    return tl.where(base > 0, positive, tl.where(exponent > 0, 0.0, 1.0))


@triton.jit
def clip_factor(norm, max_norm):
    """Return the factor of ``torch.nn.utils.clip_grad_norm_``; an infinite bound never clips."""
    factor = max_norm / (norm + 1e-6)
    return tl.where((factor > 1.0) | (max_norm == float("inf")), 1.0, factor)


@triton.jit
def preprocess_grad(g, p, s):
    """Scale the gradient, clip it by value, add the L2 and L1 terms; ``s``: CommonScalars."""
    g = s.factor * g
    limit = s.max_grad_value
    g = tl.where(g > limit, limit, tl.where(g < -limit, -limit, g))
    # a term with weight 0 is omitted: 0 * inf would be NaN
    g = tl.where(s.l2 != 0, g + s.l2 * p, g)
    return tl.where(s.l1 != 0, g + s.l1 * ((p > 0).to(p.dtype) - (p < 0).to(p.dtype)), g)


@triton.jit
def ema_update(ema, p, weight):
    """Update the exponential moving average of a parameter; its first value is the parameter."""
    return tl.where(weight == 1.0, p, ema + weight * (p - ema))
