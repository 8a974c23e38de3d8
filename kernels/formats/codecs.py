"""Storage formats in Triton: the counterpart of fused_optim/formats/codecs.py.

``load_<name>`` reads a value in the compute dtype, ``store_<name>`` rounds it once and writes it.
The store functions of weights return the value that ``load_<name>`` would read afterwards.
``pointers`` has one pointer a column; ``offs`` are consecutive and begin at ``start``; ``noise`` is
uint32, random bits for each element.
"""

import triton
import triton.language as tl

SCALE_BLOCK = tl.constexpr(64)  # elements that share a scale
INFINITY = tl.constexpr(0x7F800000)  # the bits of an infinite float32
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits of a float32 but the sign
NAN = tl.constexpr(float("nan"))


@triton.jit
def load_plain(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load one column of a floating dtype."""
    return tl.load(pointers[0] + offs, mask=mask).to(COMPUTE)


@triton.jit
def store_plain(pointers, start, offs, mask, value, noise):
    """Round to nearest even and store in one column of a floating dtype."""
    rounded = value.to(pointers[0].dtype.element_ty)
    tl.store(pointers[0] + offs, rounded, mask=mask)
    return rounded.to(value.dtype)


@triton.jit
def store_direction(pointers, start, offs, mask, value, noise):
    """Store in the last column, the workspace of a rule with a step on matrices."""
    LAST: tl.constexpr = len(pointers) - 1
    rounded = value.to(pointers[LAST].dtype.element_ty)
    tl.store(pointers[LAST] + offs, rounded, mask=mask)
    return rounded.to(value.dtype)


@triton.jit
def bits_of(value):
    """Return the bits of a float32 as int32."""
    return value.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """Return the float32 with the bits ``bits`` (int32)."""
    return bits.to(tl.float32, bitcast=True)


# ---- weights


@triton.jit
def load_master(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load the float32 master weight; the parameter, if the master no longer rounds to it."""
    param = tl.load(pointers[0] + offs, mask=mask)
    master = tl.load(pointers[1] + offs, mask=mask)
    return tl.where(master.to(param.dtype) == param, master, param.to(tl.float32))


@triton.jit
def store_master(pointers, start, offs, mask, value, noise):
    """Store the parameter, rounded to nearest even, and the float32 master weight."""
    tl.store(pointers[0] + offs, value.to(pointers[0].dtype.element_ty), mask=mask)
    tl.store(pointers[1] + offs, value, mask=mask)
    return value


@triton.jit
def load_split(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load the float32 with the bits ``(param << 16) + remainder``."""
    high = bits_of(tl.load(pointers[0] + offs, mask=mask))
    return combine_bits(high, tl.load(pointers[1] + offs, mask=mask).to(tl.int32))


@triton.jit
def store_split(pointers, start, offs, mask, value, noise):
    """Store bf16, rounded half up, and the 16-bit difference of the bits as the remainder."""
    high, low = split_bits(bits_of(value))
    tl.store(pointers[0] + offs, float_of(high).to(tl.bfloat16), mask=mask)
    tl.store(pointers[1] + offs, low.to(tl.int16), mask=mask)
    return combine_bits(high, low)


@triton.jit
def load_split24(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load the float32 with the bits ``(param << 16) + (remainder << 8)``."""
    high = bits_of(tl.load(pointers[0] + offs, mask=mask))
    return combine_bits(high, tl.load(pointers[1] + offs, mask=mask).to(tl.int8).to(tl.int32) << 8)


@triton.jit
def store_split24(pointers, start, offs, mask, value, noise):
    """Round stochastically to 24 bits; store bf16 and the 8-bit remainder."""
    high, low = split_bits(round_stochastically(bits_of(value), noise, 8))
    tl.store(pointers[0] + offs, float_of(high).to(tl.bfloat16), mask=mask)
    tl.store(pointers[1] + offs, (low >> 8).to(pointers[1].dtype.element_ty), mask=mask)
    return combine_bits(high, low)


@triton.jit
def combine_bits(high, low):
    """Return the float32 with the bits ``high + low``."""
    magnitude = high & MAGNITUDE
    # the parameter may have been written from outside: a zero stays zero, so a value below the
    # range of bf16 is zero too; adding to infinity would give NaN
    foreign = (magnitude == 0) | ((magnitude == INFINITY) & (low > 0))
    return float_of(tl.where(foreign, high, high + low))


@triton.jit
def split_bits(bits):
    """Split the bits of a float32 into those of the nearest bf16, half up, and the difference."""
    magnitude = bits & MAGNITUDE
    # a NaN may have its set bits in the low half only: setting the quiet bit keeps it a NaN
    special = tl.where(magnitude > INFINITY, bits | 0x400000, bits)
    high = tl.where(magnitude < INFINITY, bits + 0x8000, special) & -0x10000
    return high, tl.where(magnitude > INFINITY, 0, bits - high)


@triton.jit
def round_stochastically(bits, noise, DROP: tl.constexpr):
    """Round off the last DROP bits of a float32, up or down so that the mean is the value.

    A value whose dropped bits are 0 is unchanged, as are infinities and NaN. A finite value stays
    finite.
    """
    rest: tl.constexpr = (1 << DROP) - 1
    grown = bits + (noise & rest).to(tl.int32)  # a float's bits grow with its magnitude
    stays = (bits & MAGNITUDE) >= INFINITY
    grown = tl.where((grown & MAGNITUDE) >= INFINITY, bits, grown)
    return tl.where(stays, bits, grown & -(rest + 1))


@triton.jit
def load_kahan(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load the sum of the parameter and its compensation, the rounding error of the last store."""
    param = tl.load(pointers[0] + offs, mask=mask)
    return add_compensation(param, tl.load(pointers[1] + offs, mask=mask), COMPUTE)


@triton.jit
def add_compensation(param, lost, COMPUTE: tl.constexpr):
    """Return ``param + lost``; ``param`` if ``lost`` is too large to be its rounding error."""
    wide: tl.constexpr = param.dtype == tl.bfloat16
    param = param.to(COMPUTE)
    lost = lost.to(COMPUTE)
    power = float_of(bits_of(param) & INFINITY)  # the largest power of two <= |param|
    if wide:
        half = tl.maximum(power * 2.0**-8, 2.0**-134)
    else:
        half = tl.maximum(power * 2.0**-11, 2.0**-25)
    # an error above half an ulp belongs to an older value: the parameter was written from outside
    return tl.where((param != 0) & (tl.abs(lost) <= half), param + lost, param)


@triton.jit
def store_kahan(pointers, start, offs, mask, value, noise):
    """Store the parameter, rounded to nearest even, and the rounding error in the same dtype."""
    param = value.to(pointers[0].dtype.element_ty)
    lost = value - param.to(value.dtype)
    lost = tl.where((bits_of(lost) & MAGNITUDE) < INFINITY, lost, 0.0)
    if pointers[1].dtype.element_ty == tl.bfloat16:
        lost = float_of(round_stochastically(bits_of(lost), noise, 16))
    lost = lost.to(pointers[1].dtype.element_ty)
    tl.store(pointers[0] + offs, param, mask=mask)
    tl.store(pointers[1] + offs, lost, mask=mask)
    return add_compensation(param, lost, value.dtype)


@triton.jit
def load_stochastic(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load one column of bf16."""
    return tl.load(pointers[0] + offs, mask=mask).to(COMPUTE)


@triton.jit
def store_stochastic(pointers, start, offs, mask, value, noise):
    """Round stochastically and store in one column of bf16."""
    rounded = float_of(round_stochastically(bits_of(value), noise, 16))
    tl.store(pointers[0] + offs, rounded.to(tl.bfloat16), mask=mask)
    return rounded


# ---- 8-bit states: codes of a small floating-point format, with a power of two for each block


@triton.jit
def scale_pointers(pointer, start, COUNT: tl.constexpr):
    """Return the addresses of the scales of COUNT elements."""
    return pointer + start // SCALE_BLOCK + tl.arange(0, COUNT // SCALE_BLOCK)


@triton.jit
def any_in_block(mask, COUNT: tl.constexpr):
    """Return a mask of the scales of COUNT elements: True if ``mask`` has any of the block."""
    return tl.max(tl.reshape(mask.to(tl.int32), (COUNT // SCALE_BLOCK, SCALE_BLOCK)), 1) > 0


@triton.jit
def load_scales(pointer, mask, COUNT: tl.constexpr):
    """Load the scales of COUNT elements; the scale of a fully masked block is undefined."""
    if mask is None:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=any_in_block(mask, COUNT))


@triton.jit
def store_scales(pointer, exponents, mask, COUNT: tl.constexpr):
    """Store the scales of COUNT elements, except of fully masked blocks."""
    if mask is None:
        tl.store(pointer, exponents)
    else:
        tl.store(pointer, exponents, mask=any_in_block(mask, COUNT))


@triton.jit
def spread(exponents, COUNT: tl.constexpr):
    """Return for each of COUNT elements the exponent of its block."""
    blocks = tl.expand_dims(tl.maximum(exponents, 1), 1)
    return tl.reshape(tl.broadcast_to(blocks, (COUNT // SCALE_BLOCK, SCALE_BLOCK)), (COUNT,))


@triton.jit
def dequantize(
    pointers,
    start,
    offs,
    mask,
    MANTISSA: tl.constexpr,
    TOP: tl.constexpr,
    LARGEST: tl.constexpr,
    SIGNED: tl.constexpr,
):
    """Load codes and return their float32 values; see ``MiniFloat`` in the counterpart."""
    count: tl.constexpr = offs.shape[0]
    code = tl.load(pointers[0] + offs, mask=mask).to(tl.int32)
    exponents = load_scales(scale_pointers(pointers[1], start, count), mask, count)
    exponents = spread(exponents.to(tl.int32), count)
    magnitude = code
    if SIGNED:
        magnitude = code & 0x7F
    denormal = magnitude < 1 << MANTISSA
    # in the octave of the least normal number the mantissa counts in steps of the denormals
    code_bits = tl.where(denormal, magnitude + (1 << MANTISSA), magnitude)
    value = float_of((code_bits << (23 - MANTISSA)) + ((127 - TOP) << 23))
    value = tl.where(denormal, value - 2.0 ** (1 - TOP), value)
    value = tl.where(magnitude > LARGEST, NAN, value)
    value = tl.where(code != magnitude, -value, value)
    return value * float_of(exponents << 23)


@triton.jit
def quantize(
    pointers,
    start,
    offs,
    mask,
    value,
    noise,
    MANTISSA: tl.constexpr,
    TOP: tl.constexpr,
    LARGEST: tl.constexpr,
    SIGNED: tl.constexpr,
):
    """Store the codes of the values, rounded stochastically, and the scales of their blocks."""
    count: tl.constexpr = offs.shape[0]
    value = value.to(tl.float32)
    magnitude = bits_of(value) & MAGNITUDE
    finite = magnitude < INFINITY
    largest = tl.where(finite, magnitude, 0)
    if mask is not None:
        largest = tl.where(mask, largest, 0)
    largest = tl.max(tl.reshape(largest, (count // SCALE_BLOCK, SCALE_BLOCK)), 1)
    # the exponent is one more where the largest value is above the largest code
    room: tl.constexpr = (1 << 23) - 1 - ((LARGEST & ((1 << MANTISSA) - 1)) << (23 - MANTISSA))
    exponents = tl.minimum((largest + room) >> 23, 254)
    pointer = scale_pointers(pointers[1], start, count)
    store_scales(pointer, exponents.to(tl.uint8), mask, count)
    # halve first: the reciprocal of the largest power of two is not a normal number
    scaled = tl.abs(value) * 0.5 * float_of((255 - spread(exponents, count)) << 23)
    least: tl.constexpr = 2.0 ** (1 - TOP)
    denormal = scaled < least
    bits = bits_of(tl.where(denormal, scaled + least, scaled))
    rest: tl.constexpr = (1 << (23 - MANTISSA)) - 1
    code = (bits + (noise & rest).to(tl.int32)) >> (23 - MANTISSA)
    code = code - ((127 - TOP) << MANTISSA)
    code = tl.minimum(tl.where(denormal, code - (1 << MANTISSA), code), LARGEST)
    if not SIGNED:
        code = tl.where(magnitude != 0, tl.maximum(code, 1), code)
    code = tl.where(finite, code, LARGEST + 1)
    if SIGNED:
        code = tl.where(value < 0, code + 0x80, code)
    tl.store(pointers[0] + offs, code.to(tl.uint8), mask=mask)


@triton.jit
def load_e3m4(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load codes with a sign, 3 exponent bits and 4 mantissa bits."""
    return dequantize(pointers, start, offs, mask, 4, 7, 0x7E, True).to(COMPUTE)


@triton.jit
def store_e3m4(pointers, start, offs, mask, value, noise):
    """Store codes with a sign, 3 exponent bits and 4 mantissa bits, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 4, 7, 0x7E, True)


@triton.jit
def load_e4m4(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load codes with 4 exponent bits and 4 mantissa bits, for values that are never negative."""
    return dequantize(pointers, start, offs, mask, 4, 15, 0xFE, False).to(COMPUTE)


@triton.jit
def store_e4m4(pointers, start, offs, mask, value, noise):
    """Store codes with 4 exponent bits and 4 mantissa bits, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 4, 15, 0xFE, False)


@triton.jit
def load_e4m3(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load codes of torch.float8_e4m3fn."""
    return dequantize(pointers, start, offs, mask, 3, 15, 0x7E, True).to(COMPUTE)


@triton.jit
def store_e4m3(pointers, start, offs, mask, value, noise):
    """Store codes of torch.float8_e4m3fn, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 3, 15, 0x7E, True)


@triton.jit
def load_e5m2(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """Load codes of torch.float8_e5m2, for values that are never negative."""
    return dequantize(pointers, start, offs, mask, 2, 30, 0x7B, False).to(COMPUTE)


@triton.jit
def store_e5m2(pointers, start, offs, mask, value, noise):
    """Store codes of torch.float8_e5m2, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 2, 30, 0x7B, False)
