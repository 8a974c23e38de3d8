"""Constants: their bits from the text of TTIR, and their literals in LLVM IR."""

import re
import struct

from fused_optim.backends.native.tree import FLOATS, INTEGERS, POINTER, Type


def constant_bits(text: str, type_: Type) -> int | None:
    """Return the bits of an element of the constant ``text`` of TTIR; None if it is invalid."""
    if type_.element == POINTER:
        return None
    if type_.element == "i1":
        return {"true": 1, "false": 0}.get(text)
    if type_.element in INTEGERS:
        return _integer_bits(text, INTEGERS[type_.element])
    if re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", text):
        bits = int(text, 16)
        return bits if bits < 1 << FLOATS[type_.element] else None
    if not re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text, re.IGNORECASE):
        return None
    return _float_bits(float(text), type_.element)


def _integer_bits(text: str, width: int) -> int | None:
    if not re.fullmatch(r"-?\d{1,20}", text):
        return None
    value = int(text)
    return value % (1 << width) if -(1 << width - 1) <= value < 1 << width else None


def _float_bits(value: float, element: str) -> int | None:
    """Return the bits of the nearest number; None if it is infinite, which TTIR writes as bits."""
    if element == "bf16":
        bits = _float_bits(value, "f32")
        return None if bits is None else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    sort = {"f16": "e", "f32": "f", "f64": "d"}[element]
    try:
        return int.from_bytes(struct.pack(f"<{sort}", value), "little")
    except OverflowError:
        return None


def literal(bits: int, element: str) -> str:
    """Return a literal of LLVM IR; a float32 is written as the bits of the equal float64."""
    if element == "f64":
        return f"0x{bits:016X}"
    if element != "f32":
        return str(bits) if element != "i1" else ("true" if bits else "false")
    sign, exponent, mantissa = bits >> 31, bits >> 23 & 0xFF, bits & 0x7FFFFF
    if exponent == 0xFF:  # a conversion by a Python float might change a NaN
        return f"0x{sign << 63 | 0x7FF << 52 | mantissa << 29:016X}"
    (value,) = struct.unpack("<f", bits.to_bytes(4, "little"))
    return f"0x{int.from_bytes(struct.pack('<d', value), 'little'):016X}"
