"""The types of PTX: their storage in registers and their arithmetic."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import arithmetic
from .errors import Unsupported

Array = np.ndarray

INTEGERS = {
    f"{prefix}{bits}": np.dtype(f"{kind}{bits // 8}")
    for prefix, kind in (("b", "u"), ("u", "u"), ("s", "i"))
    for bits in (8, 16, 32, 64)
}


class Float(NamedTuple):
    """A floating-point type.

    Attributes:
        stored: dtype of a register.
        widen: function from stored values to float32 or float64; one operation in that type,
            rounded once more by ``narrow``, gives the correctly rounded result.
        narrow: function from results of such operations to stored values.
        fma: fused multiply-add of widened values, with the same property.
    """

    stored: np.dtype
    widen: Callable[[Array], Array]
    narrow: Callable[[Array], Array]
    fma: Callable[[Array, Array, Array], Array]


def _same(x: Array) -> Array:
    return x


def _packed(half: Float, stored: np.dtype) -> Float:
    """Return the type of two values in one register, the first in its lower half."""

    def widen(pair: Array) -> Array:
        halves = np.ascontiguousarray(pair).view(half.stored)
        return half.widen(halves.reshape(*pair.shape, 2))

    def narrow(x: Array) -> Array:
        return np.ascontiguousarray(half.narrow(x)).view(stored)[..., 0]

    return Float(stored, widen, narrow, half.fma)


_F64 = Float(np.dtype(np.float64), _same, _same, arithmetic.fma64)
_F32 = Float(np.dtype(np.float32), _same, arithmetic.canonical_nan, arithmetic.fma32)
_F16 = Float(
    np.dtype(np.float16),
    lambda x: x.astype(np.float64),
    arithmetic.to_f16,
    arithmetic.fma_to_odd,
)
_BF16 = Float(
    np.dtype(np.uint16),
    lambda x: arithmetic.bf16_to_f32(x).astype(np.float64),
    arithmetic.to_bf16,
    arithmetic.fma_to_odd,
)
FLOATS = {
    "f64": _F64,
    "f32": _F32,
    "f16": _F16,
    "bf16": _BF16,
    "f16x2": _packed(_F16, np.dtype(np.uint32)),
    "bf16x2": _packed(_BF16, np.dtype(np.uint32)),
    "f32x2": _packed(_F32, np.dtype(np.uint64)),
}
PREDICATE = np.dtype(bool)


def stored(kind: str) -> np.dtype:
    """Return the dtype of a register with values of this PTX type."""
    if kind == "pred":
        return PREDICATE
    if kind in INTEGERS:
        return INTEGERS[kind]
    if kind in FLOATS:
        return FLOATS[kind].stored
    raise Unsupported(f"type .{kind}")


def family(kind: str) -> str:
    """Return the family of a PTX type: "float", "integer", "predicate" or "other"."""
    if kind in FLOATS:
        return "float"
    if kind in INTEGERS:
        return "integer"
    return "predicate" if kind == "pred" else "other"
