"""Elementwise operations in LLVM IR, each rounded once by IEEE 754 on every target."""

from fused_optim.backends.native.conversions import CONVERSIONS, Conversions
from fused_optim.backends.native.emitter import Emitter, Lowered, llvm_type, suffix
from fused_optim.backends.native.tree import FLOATS, INTEGERS, Operation, Type

BINARY = {
    "arith.addf": "fadd",
    "arith.subf": "fsub",
    "arith.mulf": "fmul",
    "arith.divf": "fdiv",
    "tt.precise_divf": "fdiv",
    "arith.addi": "add",
    "arith.subi": "sub",
    "arith.muli": "mul",
    "arith.divsi": "sdiv",
    "arith.divui": "udiv",
    "arith.remsi": "srem",
    "arith.remui": "urem",
    "arith.andi": "and",
    "arith.ori": "or",
    "arith.xori": "xor",
    "arith.shli": "shl",
    "arith.shrsi": "ashr",
    "arith.shrui": "lshr",
}
# integer maximum and minimum by a comparison
EXTREMES = {
    "arith.maxsi": "icmp sgt",
    "arith.minsi": "icmp slt",
    "arith.maxui": "icmp ugt",
    "arith.minui": "icmp ult",
}
EXTREME_FLOATS = {"arith.maxnumf": ("ogt", "and"), "arith.minnumf": ("olt", "or")}
ROOTS = {"math.sqrt": "sqrt", "tt.precise_sqrt": "sqrt", "math.absf": "fabs"}


class Elementwise:
    """A writer of elementwise operations.

    Args:
        emitter: output.
        has_half: True if the target converts float16 by an instruction.
    """

    def __init__(self, emitter: Emitter, has_half: bool) -> None:
        self.emitter = emitter
        self.conversions = Conversions(emitter, has_half)

    def lower(self, operation: Operation, operands: list[Lowered]) -> Lowered | None:
        """Return the result of an operation; None if it is not elementwise."""
        name, type_ = operation.name, operation.results[0].type
        if name in BINARY or name in EXTREMES or name in EXTREME_FLOATS:
            if name in EXTREME_FLOATS and operands[1].bits is None:
                operands = operands[::-1]
            shape, (a, b) = self.emitter.even(*operands)
            text = self.binary(name, Type(type_.element, shape), a, b, operands[1].bits)
        elif name in ROOTS or name == "arith.negf":
            shape, (a,) = self.emitter.even(*operands)
            text = self._unary(name, Type(type_.element, shape), a)
        elif name.startswith("arith.cmp"):
            shape, texts = self.emitter.even(*operands)
            source = Type(operands[0].type.element, shape)
            text = self._compare(str(operation.attributes["predicate"]), source, *texts)
        elif name == "arith.select":
            return self._select(type_, operands)
        elif name in CONVERSIONS:
            shape, (a,) = self.emitter.even(*operands)
            source, result = (t._replace(shape=shape) for t in (operands[0].type, type_))
            text = self.conversions.convert(name, source, result, a)
        else:
            return None
        return self.emitter.result(type_, text, shape)

    # ---- arithmetic

    def binary(self, name: str, type_: Type, a: str, b: str, known: int | None = None) -> str:
        """Write an operation on two operands; ``known`` are the bits of the second, if constant."""
        llvm, op = llvm_type(type_), self.emitter.op
        if name in EXTREMES:
            which = op(f"{EXTREMES[name]} {llvm} {a}, {b}")
            return self._choose(which, type_, a, b)
        if name in EXTREME_FLOATS:
            return self._extreme(name, type_, a, b, known)
        return op(f"{BINARY[name]} {llvm} {a}, {b}")

    def _extreme(self, name: str, type_: Type, a: str, b: str, known: int | None) -> str:
        """Write maximum or minimum: the number if the other is NaN; -0 is less than +0."""
        predicate, join = EXTREME_FLOATS[name]
        llvm, op = llvm_type(type_), self.emitter.op
        chosen = self._choose(op(f"fcmp {predicate} {llvm} {a}, {b}"), type_, a, b)
        if known is not None and _is_plain(known, type_.element):
            return chosen  # the second operand is neither a NaN nor a zero
        bits = type_.of(f"i{FLOATS[type_.element]}")
        first, second = (self.conversions.bits(type_, bits, text) for text in (a, b))
        both = self.conversions.bits(bits, type_, op(f"{join} {llvm_type(bits)} {first}, {second}"))
        chosen = self._choose(op(f"fcmp oeq {llvm} {a}, {b}"), type_, both, chosen)
        return self._choose(op(f"fcmp uno {llvm} {b}, {b}"), type_, a, chosen)

    def _unary(self, name: str, type_: Type, a: str) -> str:
        llvm = llvm_type(type_)
        if name == "arith.negf":
            return self.emitter.op(f"fneg {llvm} {a}")
        return self.emitter.call(f"llvm.{ROOTS[name]}.{suffix(llvm)}", llvm, (llvm, a))

    def _compare(self, predicate: str, type_: Type, a: str, b: str) -> str:
        if type_.element in ("f16", "bf16"):
            wide = type_.of("f32")
            a, b = (self.conversions.convert("arith.extf", type_, wide, text) for text in (a, b))
            type_ = wide
        kind = "icmp" if type_.element in INTEGERS else "fcmp"
        return self.emitter.op(f"{kind} {predicate} {llvm_type(type_)} {a}, {b}")

    def _select(self, type_: Type, operands: list[Lowered]) -> Lowered:
        """Select by a condition for each element, or by one for all of them."""
        condition, first, second = operands
        shape, (a, b) = self.emitter.even(first, second)
        if condition.type.shape is None or condition.scalar:
            which = condition.scalar or condition.text
            text = self._choose(which, Type(type_.element, shape), a, b, one=True)
            return self.emitter.result(type_, text, shape)
        a, b = self.emitter.vector(first), self.emitter.vector(second)
        return Lowered(type_, text=self._choose(self.emitter.vector(condition), type_, a, b))

    def _choose(self, which: str, type_: Type, a: str, b: str, one: bool = False) -> str:
        condition = "i1" if one else llvm_type(type_.of("i1"))
        llvm = llvm_type(type_)
        return self.emitter.op(f"select {condition} {which}, {llvm} {a}, {llvm} {b}")


def _is_plain(bits: int, element: str) -> bool:
    """Return True if a number is neither a NaN nor zero."""
    width, exponent = (32, 0xFF << 23) if element == "f32" else (64, 0x7FF << 52)
    return 0 < bits % (1 << width - 1) <= exponent
