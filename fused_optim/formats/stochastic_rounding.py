"""Random bits for stochastic rounding, from a counter-based hash instead of a generator.

The bits of an element depend on the seed, the step, the parameter, the value (the weight or one of
its states) and the element's index in the whole parameter. So they are the same after a resume, on
any number of shards, and on every backend. ``kernels/formats/stochastic_rounding.py`` is the
counterpart in Triton.

Source: the mixing function is lowbias32 of https://github.com/skeeto/hash-prospector
"""

from collections.abc import Callable

from torch import Tensor

Noise = Callable[[], Tensor]
_GOLDEN = 0x9E3779B9 - (1 << 32)  # 2**32 divided by the golden ratio: spreads small numbers
KEY_BITS = 24  # bits of each half of a key: float32 represents these integers exactly


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return ``x >> bits`` with ``x`` (int32) read as unsigned."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def hash32(x: Tensor) -> Tensor:
    """Hash int32 by a permutation: flipping one bit of ``x`` flips half of them on average."""
    x = (x ^ _shifted(x, 16)) * 0x7FEB352D
    x = (x ^ _shifted(x, 15)) * (0x846CA68B - (1 << 32))
    return x ^ _shifted(x, 16)


def make_row_keys(seed: Tensor, step: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return two keys of ``KEY_BITS`` bits for each row; all float64, whole numbers."""
    whole = seed.long()
    key = hash32(whole.int() ^ hash32((whole >> 32).int() + 1))
    key = hash32(key ^ step.long().int())
    key = hash32(key ^ index.long().int())
    return _shifted(key, 32 - KEY_BITS).double(), _shifted(hash32(key + 1), 32 - KEY_BITS).double()


def random_bits(keys: tuple[Tensor, Tensor], elements: Tensor, number: int) -> Tensor:
    """Return 32 random bits for each of ``elements`` (int64), for value ``number`` of its row."""
    first, second = (key.int() for key in keys)
    # one hash per element: a memory-bound kernel on a GPU has few instructions to spare per byte
    high = (elements >> 32).int() * _GOLDEN + (second + number) * _GOLDEN
    return hash32((elements.int() ^ first) + high)
