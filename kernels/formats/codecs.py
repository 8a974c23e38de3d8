"""Every storage format in Triton: the Triton counterpart of fused_optim/formats/codecs.py.

``load_<name>`` reads a value in the compute dtype, ``store_<name>`` rounds it once and writes it.
The stores of weights return what ``load_<name>`` would find then.
``pointers`` has one pointer a column; ``offs`` are consecutive and begin at ``start``; ``noise`` is
uint32, random bits for each element.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(64)  # elements that share a scale
INFINITY = tl.constexpr(0x7F800000)  # the bits of an infinite float32
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits of a float32 but the sign
NAN = tl.constexpr(float("nan"))


@triton.jit
def load_plain(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """One column of a floating dtype."""
    return tl.load(pointers[0] + offs, mask=mask).to(COMPUTE)


@triton.jit
def store_plain(pointers, start, offs, mask, value, noise):
    """One column of a floating dtype, rounded to nearest even."""
    rounded = value.to(pointers[0].dtype.element_ty)
    tl.store(pointers[0] + offs, rounded, mask=mask)
    return rounded.to(value.dtype)


@triton.jit
def bits_of(value):
    """The bits of a float32."""
    return value.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """The float32 of these bits."""
    return bits.to(tl.float32, bitcast=True)


# ---- weights


@triton.jit
def load_master(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """The float32 value, unless the parameter is no longer what that rounds to."""
    param = tl.load(pointers[0] + offs, mask=mask)
    master = tl.load(pointers[1] + offs, mask=mask)
    return tl.where(master.to(param.dtype) == param, master, param.to(tl.float32))


@triton.jit
def store_master(pointers, start, offs, mask, value, noise):
    """A float32 value beside the parameter, which is rounded to nearest even."""
    tl.store(pointers[0] + offs, value.to(pointers[0].dtype.element_ty), mask=mask)
    tl.store(pointers[1] + offs, value, mask=mask)
    return value


@triton.jit
def load_split(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """The float32 with the bits ``(param << 16) + remainder``."""
    high = bits_of(tl.load(pointers[0] + offs, mask=mask))
    return combine_bits(high, tl.load(pointers[1] + offs, mask=mask).to(tl.int32))


@triton.jit
def store_split(pointers, start, offs, mask, value, noise):
    """bf16, rounded half up, and the 16 bits that lead from there to the float32."""
    high, low = split_bits(bits_of(value))
    tl.store(pointers[0] + offs, float_of(high).to(tl.bfloat16), mask=mask)
    tl.store(pointers[1] + offs, low.to(tl.int16), mask=mask)
    return combine_bits(high, low)


@triton.jit
def load_split24(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """The float32 with the bits ``(param << 16) + (remainder << 8)``."""
    high = bits_of(tl.load(pointers[0] + offs, mask=mask))
    return combine_bits(high, tl.load(pointers[1] + offs, mask=mask).to(tl.int8).to(tl.int32) << 8)


@triton.jit
def store_split24(pointers, start, offs, mask, value, noise):
    """bf16 and the 8 bits that follow, the rest rounded stochastically."""
    high, low = split_bits(round_stochastically(bits_of(value), noise, 8))
    tl.store(pointers[0] + offs, float_of(high).to(tl.bfloat16), mask=mask)
    tl.store(pointers[1] + offs, (low >> 8).to(pointers[1].dtype.element_ty), mask=mask)
    return combine_bits(high, low)


@triton.jit
def combine_bits(high, low):
    """The float32 of the bits ``high + low``."""
    magnitude = high & MAGNITUDE
    # the parameter may have been written from outside: a zero stays one, so what lies below the
    # range of bf16 is zero too; infinity would grow to NaN
    foreign = (magnitude == 0) | ((magnitude == INFINITY) & (low > 0))
    return float_of(tl.where(foreign, high, high + low))


@triton.jit
def split_bits(bits):
    """The bits of the bf16 nearest to a float32, half up, and the way from there."""
    magnitude = bits & MAGNITUDE
    # the low bits alone may be what makes a NaN: then it is a quiet one
    special = tl.where(magnitude > INFINITY, bits | 0x400000, bits)
    high = tl.where(magnitude < INFINITY, bits + 0x8000, special) & -0x10000
    return high, tl.where(magnitude > INFINITY, 0, bits - high)


@triton.jit
def round_stochastically(bits, noise, DROP: tl.constexpr):
    """A float32 without its last DROP bits, up or down so that the mean is the value.

    What has no such bits stays as it is, and so do infinities and NaN; finite stays finite.
    """
    rest: tl.constexpr = (1 << DROP) - 1
    grown = bits + (noise & rest).to(tl.int32)  # a float's bits grow with its magnitude
    stays = (bits & MAGNITUDE) >= INFINITY
    grown = tl.where((grown & MAGNITUDE) >= INFINITY, bits, grown)
    return tl.where(stays, bits, grown & -(rest + 1))


@triton.jit
def load_kahan(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """The parameter and what was lost when it was rounded."""
    param = tl.load(pointers[0] + offs, mask=mask)
    return add_compensation(param, tl.load(pointers[1] + offs, mask=mask), COMPUTE)


@triton.jit
def add_compensation(param, lost, COMPUTE: tl.constexpr):
    """The sum, unless the second is not what was lost when the first was rounded."""
    wide: tl.constexpr = param.dtype == tl.bfloat16
    param = param.to(COMPUTE)
    lost = lost.to(COMPUTE)
    power = float_of(bits_of(param) & INFINITY)  # of two, at most |param|
    if wide:
        half = tl.maximum(power * 2.0**-8, 2.0**-134)
    else:
        half = tl.maximum(power * 2.0**-11, 2.0**-25)
    # more than half an ulp is not of this parameter, which was then written from outside
    return tl.where((param != 0) & (tl.abs(lost) <= half), param + lost, param)


@triton.jit
def store_kahan(pointers, start, offs, mask, value, noise):
    """Rounded to nearest even, and what that loses, in the same dtype; in bf16 stochastically."""
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
    """One column of bf16."""
    return tl.load(pointers[0] + offs, mask=mask).to(COMPUTE)


@triton.jit
def store_stochastic(pointers, start, offs, mask, value, noise):
    """One column of bf16, rounded stochastically."""
    rounded = float_of(round_stochastically(bits_of(value), noise, 16))
    tl.store(pointers[0] + offs, rounded.to(tl.bfloat16), mask=mask)
    return rounded


# ---- states of 8 bits: small floats, and for each block a power of two


@triton.jit
def scale_pointers(pointer, start, COUNT: tl.constexpr):
    """The addresses of the scales of COUNT elements."""
    return pointer + start // BLOCK + tl.arange(0, COUNT // BLOCK)


@triton.jit
def any_in_block(mask, COUNT: tl.constexpr):
    """Return which of the scales of COUNT elements there are."""
    return tl.max(tl.reshape(mask.to(tl.int32), (COUNT // BLOCK, BLOCK)), 1) > 0


@triton.jit
def load_scales(pointer, mask, COUNT: tl.constexpr):
    """Load the scales of COUNT elements; those of blocks that are all masked are undefined."""
    if mask is None:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=any_in_block(mask, COUNT))


@triton.jit
def store_scales(pointer, exponents, mask, COUNT: tl.constexpr):
    """Store the scales of COUNT elements but those of blocks that are all masked."""
    if mask is None:
        tl.store(pointer, exponents)
    else:
        tl.store(pointer, exponents, mask=any_in_block(mask, COUNT))


@triton.jit
def spread(exponents, COUNT: tl.constexpr):
    """The exponent of its block for each element."""
    blocks = tl.expand_dims(tl.maximum(exponents, 1), 1)
    return tl.reshape(tl.broadcast_to(blocks, (COUNT // BLOCK, BLOCK)), (COUNT,))


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
    """The float32 values of the codes; see ``MiniFloat`` in the counterpart."""
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
    """Write the codes of the values, rounded stochastically, and the scales of their blocks."""
    count: tl.constexpr = offs.shape[0]
    value = value.to(tl.float32)
    magnitude = bits_of(value) & MAGNITUDE
    finite = magnitude < INFINITY
    largest = tl.where(finite, magnitude, 0)
    if mask is not None:
        largest = tl.where(mask, largest, 0)
    largest = tl.max(tl.reshape(largest, (count // BLOCK, BLOCK)), 1)
    # one more where the largest value lies between the largest code and the next power of two
    room: tl.constexpr = (1 << 23) - 1 - ((LARGEST & ((1 << MANTISSA) - 1)) << (23 - MANTISSA))
    exponents = tl.minimum((largest + room) >> 23, 254)
    pointer = scale_pointers(pointers[1], start, count)
    store_scales(pointer, exponents.to(tl.uint8), mask, count)
    # halved first: the reciprocal of the largest power of two is no normal number
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
    """A sign, 3 bits of exponent and 4 of mantissa."""
    return dequantize(pointers, start, offs, mask, 4, 7, 0x7E, True).to(COMPUTE)


@triton.jit
def store_e3m4(pointers, start, offs, mask, value, noise):
    """A sign, 3 bits of exponent and 4 of mantissa, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 4, 7, 0x7E, True)


@triton.jit
def load_e4m4(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """4 bits of exponent and 4 of mantissa, for what is never negative."""
    return dequantize(pointers, start, offs, mask, 4, 15, 0xFE, False).to(COMPUTE)


@triton.jit
def store_e4m4(pointers, start, offs, mask, value, noise):
    """4 bits of exponent and 4 of mantissa, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 4, 15, 0xFE, False)


@triton.jit
def load_e4m3(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """torch.float8_e4m3fn."""
    return dequantize(pointers, start, offs, mask, 3, 15, 0x7E, True).to(COMPUTE)


@triton.jit
def store_e4m3(pointers, start, offs, mask, value, noise):
    """torch.float8_e4m3fn, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 3, 15, 0x7E, True)


@triton.jit
def load_e5m2(pointers, start, offs, mask, COMPUTE: tl.constexpr):
    """torch.float8_e5m2, for what is never negative."""
    return dequantize(pointers, start, offs, mask, 2, 30, 0x7B, False).to(COMPUTE)


@triton.jit
def store_e5m2(pointers, start, offs, mask, value, noise):
    """torch.float8_e5m2, rounded stochastically."""
    quantize(pointers, start, offs, mask, value, noise, 2, 30, 0x7B, False)
