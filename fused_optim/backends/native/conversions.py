"""Conversions of elements in LLVM IR, with the same bits on every target.

bfloat16 and float16 are integers in the IR. bfloat16 is always rounded by integer operations: the
instruction of AVX-512 flushes denormals to zero. float16 is converted by integer operations where
the target has no instruction, since LLVM would call a library.
"""

import struct

from fused_optim.backends.native.constants import literal
from fused_optim.backends.native.emitter import Emitter, llvm_type, spread, suffix
from fused_optim.backends.native.tree import Type

PLAIN = {
    "arith.extsi": "sext",
    "arith.extui": "zext",
    "arith.trunci": "trunc",
    "arith.sitofp": "sitofp",
    "tt.int_to_ptr": "inttoptr",
}
OTHERS = {"arith.uitofp", "arith.fptosi", "arith.fptoui", "arith.extf", "arith.truncf"}
CONVERSIONS = {*PLAIN, *OTHERS, "arith.bitcast", "tt.bitcast"}


class Conversions:
    """A writer of conversions.

    Args:
        emitter: output.
        has_half: True if the target converts float16 by an instruction.
    """

    def __init__(self, emitter: Emitter, has_half: bool) -> None:
        self.emitter, self.has_half = emitter, has_half

    def convert(self, name: str, source: Type, result: Type, a: str) -> str:
        """Convert the operand ``a`` of type ``source`` to ``result``, of the same shape."""
        before, after = llvm_type(source), llvm_type(result)
        if name in PLAIN:
            return self.emitter.op(f"{PLAIN[name]} {before} {a} to {after}")
        if name in ("arith.fptosi", "arith.fptoui"):
            # saturating, with NaN to 0: plain fptosi is undefined for these values
            called = f"llvm.{name.removeprefix('arith.')}.sat.{suffix(after)}.{suffix(before)}"
            return self.emitter.call(called, after, (before, a))
        if name == "arith.uitofp":
            if source.element != "i1":
                return self.emitter.op(f"uitofp {before} {a} to {after}")
            one, zero = self._number(result, 1.0), self._number(result, 0.0)
            return self._choose(a, result, one, zero)
        if name == "arith.extf":
            return self._widen(source, result, a)
        if name == "arith.truncf":
            return self._narrow(source, result, a)
        return self.bits(source, result, a)

    def bits(self, source: Type, result: Type, a: str) -> str:
        """Return the same bits as another type of the same width."""
        if llvm_type(source) == llvm_type(result):
            return a
        return self.emitter.op(f"bitcast {llvm_type(source)} {a} to {llvm_type(result)}")

    # ---- pieces

    def _choose(self, which: str, type_: Type, a: str, b: str) -> str:
        llvm = llvm_type(type_)
        return self.emitter.op(
            f"select {llvm_type(type_.of('i1'))} {which}, {llvm} {a}, {llvm} {b}"
        )

    def _number(self, type_: Type, value: float) -> str:
        """Return a floating-point constant; ``value`` must be exact in its type."""
        sort = "f" if type_.element == "f32" else "d"
        bits = int.from_bytes(struct.pack(f"<{sort}", value), "little")
        return self._all(type_, literal(bits, type_.element))

    def _all(self, type_: Type, text: str) -> str:
        """Return a constant, repeated for the shape of the type."""
        if type_.shape is None:
            return text
        return spread(llvm_type(type_.scalar), text, type_.size)

    def _int(self, op: str, type_: Type, a: str, b: str | int) -> str:
        """Write an integer operation, whose second operand may be a number."""
        text = self._all(type_, str(b)) if isinstance(b, int) else b
        return self.emitter.op(f"{op} {llvm_type(type_)} {a}, {text}")

    # ---- wider

    def _widen(self, source: Type, result: Type, a: str) -> str:
        single = source.of("f32")
        if source.element == "bf16":
            bits = source.of("i32")
            wide = self.emitter.op(f"zext {llvm_type(source)} {a} to {llvm_type(bits)}")
            a = self.bits(bits, single, self._int("shl", bits, wide, 16))
        elif source.element == "f16":
            a = self._from_half(source, single, a)
        if result.element == "f64":
            return self.emitter.op(f"fpext {llvm_type(single)} {a} to {llvm_type(result)}")
        return a

    def _from_half(self, source: Type, single: Type, a: str) -> str:
        if self.has_half:
            half = llvm_type(source).replace("i16", "half")
            a = self.emitter.op(f"bitcast {llvm_type(source)} {a} to {half}")
            return self.emitter.op(f"fpext {half} {a} to {llvm_type(single)}")
        bits = source.of("i32")
        a = self.emitter.op(f"zext {llvm_type(source)} {a} to {llvm_type(bits)}")
        sign = self._int("shl", bits, self._int("and", bits, a, 0x8000), 16)
        size = self._int("and", bits, a, 0x7FFF)
        shifted = self._int("shl", bits, size, 13)
        normal = self._int("add", bits, shifted, 112 << 23)
        infinite = self._int("add", bits, shifted, 224 << 23)
        is_nan = self._int("icmp ugt", bits, size, 0x7C00)
        infinite = self._choose(is_nan, bits, self._int("or", bits, infinite, 1 << 22), infinite)
        is_infinite = self._int("icmp uge", bits, size, 0x7C00)
        normal = self._choose(is_infinite, bits, infinite, normal)
        # a denormal is an integer times 2 ** -24, exact in float32
        count = self.emitter.op(f"sitofp {llvm_type(bits)} {size} to {llvm_type(single)}")
        least = self._number(single, 2.0**-24)
        small = self.emitter.op(f"fmul {llvm_type(single)} {count}, {least}")
        is_small = self._int("icmp ult", bits, size, 0x400)
        result_bits = self._choose(is_small, bits, self.bits(single, bits, small), normal)
        return self.bits(bits, single, self._int("or", bits, result_bits, sign))

    # ---- narrower, to nearest even

    def _narrow(self, source: Type, result: Type, a: str) -> str:
        if result.element == "f32":
            return self.emitter.op(f"fptrunc {llvm_type(source)} {a} to {llvm_type(result)}")
        if result.element == "f16":
            return self._to_half(source, result, a)
        bits = source.of("i32")
        wide = self.bits(source, bits, a)
        odd = self._int("and", bits, self._int("lshr", bits, wide, 16), 1)
        grown = self._int("add", bits, self._int("add", bits, wide, 0x7FFF), odd)
        result_bits = self._int("lshr", bits, grown, 16)
        is_nan = self.emitter.op(f"fcmp uno {llvm_type(source)} {a}, {a}")
        result_bits = self._choose(is_nan, bits, self._all(bits, str(0x7FC0)), result_bits)
        return self.emitter.op(f"trunc {llvm_type(bits)} {result_bits} to {llvm_type(result)}")

    def _to_half(self, source: Type, result: Type, a: str) -> str:
        if self.has_half:
            half = llvm_type(result).replace("i16", "half")
            a = self.emitter.op(f"fptrunc {llvm_type(source)} {a} to {half}")
            return self.emitter.op(f"bitcast {half} {a} to {llvm_type(result)}")
        bits = source.of("i32")
        wide = self.bits(source, bits, a)
        size = self._int("and", bits, wide, 0x7FFFFFFF)
        sign = self._int("and", bits, self._int("lshr", bits, wide, 16), 0x8000)
        odd = self._int("and", bits, self._int("lshr", bits, size, 13), 1)
        # change the exponent bias; the carry of the rounding may give infinity
        grown = self._int("add", bits, size, 0xFFF - (112 << 23))
        result_bits = self._int("lshr", bits, self._int("add", bits, grown, odd), 13)
        # the sum has the ulp of a denormal float16, so the addition rounds
        half = self._number(source, 0.5)
        small = self.emitter.op(f"fadd {llvm_type(source)} {self.bits(bits, source, size)}, {half}")
        small = self._int("sub", bits, self.bits(source, bits, small), 126 << 23)
        is_small = self._int("icmp ult", bits, size, 113 << 23)
        result_bits = self._choose(is_small, bits, small, result_bits)
        payload = self._int("or", bits, self._int("lshr", bits, size, 13), 0x200)
        payload = self._int("and", bits, payload, 0x3FF)
        is_nan = self._int("icmp ugt", bits, size, 255 << 23)
        payload = self._choose(is_nan, bits, payload, self._all(bits, "0"))
        large = self._int("or", bits, payload, 0x7C00)
        is_large = self._int("icmp uge", bits, size, 143 << 23)
        result_bits = self._int("or", bits, self._choose(is_large, bits, large, result_bits), sign)
        return self.emitter.op(f"trunc {llvm_type(bits)} {result_bits} to {llvm_type(result)}")
