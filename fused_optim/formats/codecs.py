"""Every storage format in plain torch: how one value is read from and written to its columns.

``load_<name>`` reads the value in the compute dtype, ``store_<name>`` rounds it once and writes it;
a format with more than one column (a weight and its remainder, codes and their scales) takes them
all. ``kernels/formats/codecs.py`` is the counterpart in Triton. To add a format, write its two
functions in both, and its line in :mod:`fused_optim.formats.registry`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fused_optim.formats.stochastic_rounding import Noise

BLOCK = 64  # elements that share a scale
INFINITY = 0x7F800000  # the bits of an infinite float32
MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but the sign

Columns = Sequence[Tensor]
Load = Callable[[Columns, torch.dtype], Tensor]
Store = Callable[[Columns, Tensor, Noise | None], None]


class ColumnSpec(NamedTuple):
    """One tensor that a format needs for a value.

    Attributes:
        name: suffix of the state's name; for a weight, the whole name of the state entry.
        dtype: dtype of the tensor; None for the parameter's.
        block: number of elements of the value for each element of the column.
    """

    name: str = ""
    dtype: torch.dtype | None = None
    block: int = 1


class Codec(NamedTuple):
    """One storage format. Its Triton counterparts are found by the names of these functions.

    A state whose columns are zeros is zero.

    Attributes:
        load: ``(columns, compute dtype) -> value``.
        store: ``(columns, value, noise) -> None``, in place; ``noise()`` returns int32 random bits
            for each element; it is None where ``stochastic`` is False.
        columns: tensors that a value needs.
        stochastic: True if values are rounded stochastically.
    """

    load: Load
    store: Store
    columns: tuple[ColumnSpec, ...] = (ColumnSpec(),)
    stochastic: bool = False

    @property
    def extra_keys(self) -> list[str]:
        """Names of the state entries that hold a weight beyond its parameter."""
        return [column.name for column in self.columns[1:]]

    def column_keys(self, state_key: str) -> list[str]:
        """Return the names of the state entries that hold the state ``state_key``."""
        return [state_key + column.name for column in self.columns]


def load_plain(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load one column of a floating dtype."""
    return columns[0].to(compute)


def store_plain(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """One column of a floating dtype, rounded to nearest even."""
    columns[0].copy_(value)


# ---- weights


def load_master(columns: Columns, compute: torch.dtype) -> Tensor:
    """The float32 value, unless the parameter is no longer what that rounds to."""
    param, master = columns
    return torch.where(master.to(param.dtype) == param, master, param.float())


def store_master(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """A float32 value beside the parameter, which is rounded to nearest even."""
    columns[0].copy_(value)
    columns[1].copy_(value)


def load_split(columns: Columns, compute: torch.dtype) -> Tensor:
    """The float32 with the bits ``(param << 16) + remainder``."""
    return _combine_bits(columns[0].float().view(torch.int32), columns[1].int())


def store_split(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """bf16, rounded half up, and the 16 bits that lead from there to the float32."""
    high, low = _split_bits(value.view(torch.int32))
    columns[0].copy_(high.view(torch.float32))
    columns[1].copy_(low)


def load_split24(columns: Columns, compute: torch.dtype) -> Tensor:
    """The float32 with the bits ``(param << 16) + (remainder << 8)``."""
    return _combine_bits(columns[0].float().view(torch.int32), columns[1].int() << 8)


def store_split24(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """bf16 and the 8 bits that follow, the rest rounded stochastically."""
    assert noise is not None
    high, low = _split_bits(_round_stochastically(value.view(torch.int32), noise(), 8))
    columns[0].copy_(high.view(torch.float32))
    columns[1].copy_(low >> 8)


def _combine_bits(high: Tensor, low: Tensor) -> Tensor:
    """The float32 of the bits ``high + low``."""
    magnitude = high & MAGNITUDE
    # the parameter may have been written from outside: a zero stays one, so what lies below the
    # range of bf16 is zero too; infinity would grow to NaN
    foreign = (magnitude == 0) | ((magnitude == INFINITY) & (low > 0))
    return torch.where(foreign, high, high + low).view(torch.float32)


def _split_bits(bits: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of the bf16 nearest to a float32, half up, and the way from there."""
    magnitude = bits & MAGNITUDE
    # the low bits alone may be what makes a NaN: then it is a quiet one
    special = torch.where(magnitude > INFINITY, bits | 0x400000, bits)
    high = torch.where(magnitude < INFINITY, bits + 0x8000, special) & ~0xFFFF
    return high, torch.where(magnitude > INFINITY, 0, bits - high)


def _round_stochastically(bits: Tensor, noise: Tensor, drop: int) -> Tensor:
    """A float32 without its last ``drop`` bits, up or down so that the mean is the value.

    What has no such bits stays as it is, and so do infinities and NaN; finite stays finite.
    """
    rest = (1 << drop) - 1
    grown = bits + (noise & rest)  # a float's bits grow with its magnitude
    stays = (bits & MAGNITUDE) >= INFINITY
    grown = torch.where((grown & MAGNITUDE) >= INFINITY, bits, grown)
    return torch.where(stays, bits, grown & ~rest)


def load_kahan(columns: Columns, compute: torch.dtype) -> Tensor:
    """The parameter and what was lost when it was rounded."""
    param, lost = (column.to(compute) for column in columns)
    power = (param.view(torch.int32) & INFINITY).view(torch.float32)  # of two, at most |param|
    wide = columns[0].dtype is torch.bfloat16
    half = (power * 2.0 ** (-8 if wide else -11)).clamp(min=2.0 ** (-134 if wide else -25))
    # more than half an ulp is not of this parameter, which was then written from outside
    return torch.where((param != 0) & (lost.abs() <= half), param + lost, param)


def store_kahan(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Rounded to nearest even, and what that loses, in the same dtype; in bf16 stochastically.

    Two bf16 are 17 bits: a step of 1e-5 at a weight of 1 is near the last of them.
    """
    assert noise is not None
    columns[0].copy_(value)
    lost = value - columns[0].to(value.dtype)
    lost = torch.where(lost.isfinite(), lost, 0.0)
    if columns[1].dtype is torch.bfloat16:
        lost = _round_stochastically(lost.view(torch.int32), noise(), 16).view(torch.float32)
    columns[1].copy_(lost)


def load_stochastic(columns: Columns, compute: torch.dtype) -> Tensor:
    """One column of bf16."""
    return columns[0].to(compute)


def store_stochastic(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """One column of bf16, rounded stochastically."""
    assert noise is not None
    columns[0].copy_(
        _round_stochastically(value.float().view(torch.int32), noise(), 16).view(torch.float32)
    )


# ---- states of 8 bits: small floats, and for each block a power of two


class MiniFloat(NamedTuple):
    """A floating-point format of one byte for values below 2; each block has a power of two.

    Attributes:
        mantissa_bits: number of mantissa bits; denormals reach down to zero.
        exponent_bias: exponent field of numbers in [1, 2).
        max_code: largest code; the next one is NaN, which infinities become too.
        signed: True if the first bit is the sign; without it no value is negative, and none but
            zero is rounded to zero.
    """

    mantissa_bits: int
    exponent_bias: int
    max_code: int
    signed: bool


E3M4 = MiniFloat(4, 7, 0x7E, True)
E4M4 = MiniFloat(4, 15, 0xFE, False)
E4M3 = MiniFloat(3, 15, 0x7E, True)  # the codes of torch.float8_e4m3fn
E5M2 = MiniFloat(2, 30, 0x7B, False)  # the codes of torch.float8_e5m2


def _dequantize(columns: Columns, mini: MiniFloat) -> Tensor:
    codes, scales = columns
    code = codes.view(torch.uint8).int()
    magnitude = code & 0x7F if mini.signed else code
    denormal = magnitude < 1 << mini.mantissa_bits
    # in the octave of the least normal number the mantissa counts in steps of the denormals
    code_bits = torch.where(denormal, magnitude + (1 << mini.mantissa_bits), magnitude)
    bits = (code_bits << (23 - mini.mantissa_bits)) + ((127 - mini.exponent_bias) << 23)
    least = 2.0 ** (1 - mini.exponent_bias)
    value = bits.view(torch.float32)
    value = torch.where(denormal, value - least, value)
    value = torch.where(magnitude > mini.max_code, torch.nan, value)
    value = torch.where(code != magnitude, -value, value)
    exponents = scales.int().clamp(min=1).repeat_interleave(BLOCK)[: len(code)]
    return value * (exponents << 23).view(torch.float32)


def _quantize(columns: Columns, value: Tensor, noise: Noise | None, mini: MiniFloat) -> None:
    assert noise is not None
    value = value.float()
    magnitude = value.view(torch.int32) & MAGNITUDE
    finite = magnitude < INFINITY
    blocks = pad(torch.where(finite, magnitude, 0), (0, -len(value) % BLOCK)).view(-1, BLOCK)
    # one more where the largest value lies between the largest code and the next power of two
    room = (
        (1 << 23)
        - 1
        - ((mini.max_code & ((1 << mini.mantissa_bits) - 1)) << (23 - mini.mantissa_bits))
    )
    exponents = ((blocks.amax(1) + room) >> 23).clamp(max=254)
    columns[1].copy_(exponents)
    exponents = exponents.clamp(min=1).repeat_interleave(BLOCK)[: len(value)]
    # halved first: the reciprocal of the largest power of two is no normal number
    scaled = value.abs() * 0.5 * ((255 - exponents) << 23).view(torch.float32)
    least = 2.0 ** (1 - mini.exponent_bias)
    denormal = scaled < least
    bits = torch.where(denormal, scaled + least, scaled).view(torch.int32)
    code = (bits + (noise() & ((1 << (23 - mini.mantissa_bits)) - 1))) >> (23 - mini.mantissa_bits)
    code = code - ((127 - mini.exponent_bias) << mini.mantissa_bits)
    code = torch.where(denormal, code - (1 << mini.mantissa_bits), code).clamp(max=mini.max_code)
    if not mini.signed:
        code = torch.where(magnitude != 0, code.clamp(min=1), code)
    code = torch.where(finite, code, mini.max_code + 1)
    if mini.signed:
        code = torch.where(value < 0, code + 0x80, code)
    columns[0].view(torch.uint8).copy_(code)


def load_e3m4(columns: Columns, compute: torch.dtype) -> Tensor:
    """A sign, 3 bits of exponent and 4 of mantissa."""
    return _dequantize(columns, E3M4).to(compute)


def store_e3m4(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """A sign, 3 bits of exponent and 4 of mantissa, rounded stochastically."""
    _quantize(columns, value, noise, E3M4)


def load_e4m4(columns: Columns, compute: torch.dtype) -> Tensor:
    """4 bits of exponent and 4 of mantissa, for what is never negative."""
    return _dequantize(columns, E4M4).to(compute)


def store_e4m4(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """4 bits of exponent and 4 of mantissa, rounded stochastically."""
    _quantize(columns, value, noise, E4M4)


def load_e4m3(columns: Columns, compute: torch.dtype) -> Tensor:
    """torch.float8_e4m3fn."""
    return _dequantize(columns, E4M3).to(compute)


def store_e4m3(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """torch.float8_e4m3fn, rounded stochastically."""
    _quantize(columns, value, noise, E4M3)


def load_e5m2(columns: Columns, compute: torch.dtype) -> Tensor:
    """torch.float8_e5m2, for what is never negative."""
    return _dequantize(columns, E5M2).to(compute)


def store_e5m2(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """torch.float8_e5m2, rounded stochastically."""
    _quantize(columns, value, noise, E5M2)
