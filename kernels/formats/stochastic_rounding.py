"""Random bits in Triton: the counterpart of fused_optim/formats/stochastic_rounding.py."""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B9)  # 2**32 divided by the golden ratio: spreads small numbers
KEY_BITS = tl.constexpr(24)  # bits of each half of a key: float32 represents them exactly


@triton.jit
def hash32(x):
    """Hash uint32 by a permutation: flipping one bit of ``x`` flips half of them on average."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def make_row_keys(seed, step, index):
    """Return two keys of ``KEY_BITS`` bits for each row; seed and step: float64, whole numbers."""
    whole = seed.to(tl.int64)
    key = hash32(whole.to(tl.uint32) ^ hash32((whole >> 32).to(tl.uint32) + 1))
    key = hash32(key ^ step.to(tl.int64).to(tl.uint32))
    key = hash32(key ^ index.to(tl.uint32))
    return key >> (32 - KEY_BITS), hash32(key + 1) >> (32 - KEY_BITS)


@triton.jit
def random_bits(keys, elements, NUMBER: tl.constexpr):
    """Return 32 random bits for each of ``elements`` (int64), for value ``NUMBER`` of its row."""
    first, second = keys
    high = (elements >> 32).to(tl.uint32) * GOLDEN + (second.to(tl.uint32) + NUMBER) * GOLDEN
    return hash32((elements.to(tl.uint32) ^ first.to(tl.uint32)) + high)
