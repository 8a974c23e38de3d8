"""Storage formats in plain torch: functions that load a value from its columns and store it.

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

SCALE_BLOCK = 64  # elements that share a scale
INFINITY = 0x7F800000  # bits of an infinite float32
MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but the sign

Columns = Sequence[Tensor]
Load = Callable[[Columns, torch.dtype], Tensor]
Store = Callable[[Columns, Tensor, Noise | None], None]


class ColumnSpec(NamedTuple):
    """The specification of one tensor that stores a part of a value.

    Attributes:
        name: suffix of the state's name; for a weight, the whole name of the state entry.
        dtype: dtype of the tensor; None for the dtype of the parameter.
        block: number of elements of the value for each element of the column.
        accesses: 2 if an update reads and writes the column, 1 if it does one of both.
    """

    name: str = ""
    dtype: torch.dtype | None = None
    block: int = 1
    accesses: int = 2


class Codec(NamedTuple):
    """A storage format. The Triton counterparts of its functions have the same names.

    A state whose columns are zeros is zero.

    Attributes:
        load: function ``(columns, compute dtype) -> value``.
        store: function ``(columns, value, noise) -> None``, in place; ``noise()`` returns int32
            random bits for each element; ``noise`` is None where ``stochastic`` is False.
        columns: specifications of the tensors that store a value.
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
    """Round to nearest even and store in one column of a floating dtype."""
    columns[0].copy_(value)


def store_direction(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store in the last column, the workspace of a rule with a step on matrices."""
    columns[-1].copy_(value)


# ---- weights


def load_master(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load the float32 master weight; the parameter, if the master no longer rounds to it."""
    param, master = columns[:2]
    return torch.where(master.to(param.dtype) == param, master, param.float())


def store_master(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store the parameter, rounded to nearest even, and the float32 master weight."""
    columns[0].copy_(value)
    columns[1].copy_(value)


def load_split(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load the float32 with the bits ``(param << 16) + remainder``."""
    return _combine_bits(columns[0].float().view(torch.int32), columns[1].int())


def store_split(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store bf16, rounded half up, and the 16-bit difference of the bits as the remainder."""
    high, low = _split_bits(value.view(torch.int32))
    columns[0].copy_(high.view(torch.float32))
    columns[1].copy_(low)


def load_split24(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load the float32 with the bits ``(param << 16) + (remainder << 8)``."""
    return _combine_bits(columns[0].float().view(torch.int32), columns[1].int() << 8)


def store_split24(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Round stochastically to 24 bits; store bf16 and the 8-bit remainder."""
    assert noise is not None
    high, low = _split_bits(_round_stochastically(value.view(torch.int32), noise(), 8))
    columns[0].copy_(high.view(torch.float32))
    columns[1].copy_(low >> 8)


def _combine_bits(high: Tensor, low: Tensor) -> Tensor:
    """Return the float32 with the bits ``high + low``."""
    magnitude = high & MAGNITUDE
    # the parameter may have been written from outside: a zero stays zero, so a value below the
    # range of bf16 is zero too; adding to infinity would give NaN
    foreign = (magnitude == 0) | ((magnitude == INFINITY) & (low > 0))
    return torch.where(foreign, high, high + low).view(torch.float32)


def _split_bits(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Split the bits of a float32 into those of the nearest bf16, half up, and the difference."""
    magnitude = bits & MAGNITUDE
    # a NaN may have its set bits in the low half only: setting the quiet bit keeps it a NaN
    special = torch.where(magnitude > INFINITY, bits | 0x400000, bits)
    high = torch.where(magnitude < INFINITY, bits + 0x8000, special) & ~0xFFFF
    return high, torch.where(magnitude > INFINITY, 0, bits - high)


def _round_stochastically(bits: Tensor, noise: Tensor, drop: int) -> Tensor:
    """Round off the last ``drop`` bits of a float32, up or down so that the mean is the value.

    A value whose dropped bits are 0 is unchanged, as are infinities and NaN. A finite value stays
    finite.
    """
    rest = (1 << drop) - 1
    grown = bits + (noise & rest)  # a float's bits grow with its magnitude
    stays = (bits & MAGNITUDE) >= INFINITY
    grown = torch.where((grown & MAGNITUDE) >= INFINITY, bits, grown)
    return torch.where(stays, bits, grown & ~rest)


def load_kahan(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load the sum of the parameter and its compensation, the rounding error of the last store."""
    param, lost = (column.to(compute) for column in columns[:2])
    # the largest power of two <= |param|
    power = (param.view(torch.int32) & INFINITY).view(torch.float32)
    wide = columns[0].dtype is torch.bfloat16
    half = (power * 2.0 ** (-8 if wide else -11)).clamp(min=2.0 ** (-134 if wide else -25))
    # an error above half an ulp belongs to an older value: the parameter was written from outside
    return torch.where((param != 0) & (lost.abs() <= half), param + lost, param)


def store_kahan(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store the parameter, rounded to nearest even, and the rounding error in the same dtype.

    A bf16 error is rounded stochastically: two bf16 have 17 bits, and a step of 1e-5 at a weight of
    1 is near the last of them.
    """
    assert noise is not None
    columns[0].copy_(value)
    lost = value - columns[0].to(value.dtype)
    lost = torch.where(lost.isfinite(), lost, 0.0)
    if columns[1].dtype is torch.bfloat16:
        lost = _round_stochastically(lost.view(torch.int32), noise(), 16).view(torch.float32)
    columns[1].copy_(lost)


def load_stochastic(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load one column of bf16."""
    return columns[0].to(compute)


def store_stochastic(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Round stochastically and store in one column of bf16."""
    assert noise is not None
    columns[0].copy_(
        _round_stochastically(value.float().view(torch.int32), noise(), 16).view(torch.float32)
    )


# ---- 8-bit states: codes of a small floating-point format, with a power of two for each block


class MiniFloat(NamedTuple):
    """An 8-bit floating-point format for values below 2; each block is scaled by a power of two.

    Attributes:
        mantissa_bits: number of mantissa bits; denormals reach down to zero.
        exponent_bias: exponent field of numbers in [1, 2).
        max_code: largest finite code; the next one is NaN, which also represents infinities.
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
    exponents = scales.int().clamp(min=1).repeat_interleave(SCALE_BLOCK)[: len(code)]
    return value * (exponents << 23).view(torch.float32)


def _quantize(columns: Columns, value: Tensor, noise: Noise | None, mini: MiniFloat) -> None:
    assert noise is not None
    value = value.float()
    magnitude = value.view(torch.int32) & MAGNITUDE
    finite = magnitude < INFINITY
    padding = -len(value) % SCALE_BLOCK
    blocks = pad(torch.where(finite, magnitude, 0), (0, padding)).view(-1, SCALE_BLOCK)
    # the exponent is one more where the largest value is above the largest code
    room = (
        (1 << 23)
        - 1
        - ((mini.max_code & ((1 << mini.mantissa_bits) - 1)) << (23 - mini.mantissa_bits))
    )
    exponents = ((blocks.amax(1) + room) >> 23).clamp(max=254)
    columns[1].copy_(exponents)
    exponents = exponents.clamp(min=1).repeat_interleave(SCALE_BLOCK)[: len(value)]
    # halve first: the reciprocal of the largest power of two is not a normal number
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
    """Load codes with a sign, 3 exponent bits and 4 mantissa bits."""
    return _dequantize(columns, E3M4).to(compute)


def store_e3m4(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store codes with a sign, 3 exponent bits and 4 mantissa bits, rounded stochastically."""
    _quantize(columns, value, noise, E3M4)


def load_e4m4(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load codes with 4 exponent bits and 4 mantissa bits, for values that are never negative."""
    return _dequantize(columns, E4M4).to(compute)


def store_e4m4(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store codes with 4 exponent bits and 4 mantissa bits, rounded stochastically."""
    _quantize(columns, value, noise, E4M4)


def load_e4m3(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load codes of torch.float8_e4m3fn."""
    return _dequantize(columns, E4M3).to(compute)


def store_e4m3(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store codes of torch.float8_e4m3fn, rounded stochastically."""
    _quantize(columns, value, noise, E4M3)


def load_e5m2(columns: Columns, compute: torch.dtype) -> Tensor:
    """Load codes of torch.float8_e5m2, for values that are never negative."""
    return _dequantize(columns, E5M2).to(compute)


def store_e5m2(columns: Columns, value: Tensor, noise: Noise | None) -> None:
    """Store codes of torch.float8_e5m2, rounded stochastically."""
    _quantize(columns, value, noise, E5M2)
