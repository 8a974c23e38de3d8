"""The writer of LLVM IR as text, and the record of a value in it."""

from dataclasses import dataclass, replace
from math import prod

from fused_optim.backends.native.constants import literal
from fused_optim.backends.native.tree import POINTER, Type, Value

ELEMENTS = {"f32": "float", "f64": "double", POINTER: "ptr"}
# 16-bit floats are integers: only conversions.py rounds them
ELEMENTS |= {"f16": "i16", "bf16": "i16"}
SUFFIXES = {"float": "f32", "double": "f64", "ptr": "p0"}


def llvm_type(type_: Type) -> str:
    """Return the type in LLVM IR: a tensor of N elements is a vector of N."""
    element = ELEMENTS.get(type_.element, type_.element)
    return element if type_.shape is None else f"<{type_.size} x {element}>"


def suffix(llvm: str) -> str:
    """Return the suffix of a type in the names of intrinsics, such as ``"v64f32"``."""
    if not llvm.startswith("<"):
        return SUFFIXES.get(llvm, llvm)
    count, element = llvm[1:-1].split(" x ")
    return f"v{count}{SUFFIXES.get(element, element)}"


@dataclass
class Lowered:
    """A value of the kernel in LLVM IR.

    A tensor has at least one of ``text``, ``scalar``, ``start`` and ``live``. A tensor of one
    element always has ``scalar``.

    Attributes:
        type: type in TTIR.
        text: operand of a scalar, or of the vector of a tensor; "" if not written.
        scalar: operand that equals every element of a tensor; "" if unknown.
        start: operand of the first of consecutive elements: element i is ``start + i``, for a
            pointer i elements further; "" if not consecutive.
        bits: bits of every element of a constant; None if not constant.
        live: operand of a mask, i64: number of leading true elements; "" if unknown.
        root: argument that a pointer is derived from; None if unknown.
    """

    type: Type
    text: str = ""
    scalar: str = ""
    start: str = ""
    bits: int | None = None
    live: str = ""
    root: Value | None = None


class Emitter:
    """A writer of the text of one function, from beginning to end.

    Attributes:
        block: label of the current block.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.buffers: dict[tuple[str, str], str] = {}
        self.declarations: dict[str, str] = {}
        self.block = "entry"
        self.count = 0

    # ---- lines

    def line(self, text: str) -> None:
        """Write an instruction without a result."""
        self.lines.append(f"  {text}")

    def op(self, text: str) -> str:
        """Write an instruction and return its result."""
        self.count += 1
        self.line(f"%v{self.count} = {text}")
        return f"%v{self.count}"

    def new(self, *names: str) -> list[str]:
        """Return unique labels that begin with ``names``."""
        self.count += 1
        return [f"{name}{self.count}" for name in names]

    def label(self, name: str) -> None:
        """Write a label, which begins a block."""
        self.lines.append(f"{name}:")
        self.block = name

    def jump(self, label: str) -> None:
        """Write a jump, which ends a block."""
        self.line(f"br label %{label}")

    def branch(self, condition: str, then: str, otherwise: str) -> None:
        """Write a conditional branch, which ends a block."""
        self.line(f"br i1 {condition}, label %{then}, label %{otherwise}")

    def call(self, name: str, result: str, *operands: tuple[str, str]) -> str:
        """Call an intrinsic and return its result, if it has one."""
        types = ", ".join(type_ for type_, _ in operands)
        self.declarations[name] = f"declare {result} @{name}({types})"
        text = f"call {result} @{name}({', '.join(f'{t} {value}' for t, value in operands)})"
        if result == "void":
            self.line(text)
            return ""
        return self.op(text)

    def buffer(self, llvm: str, use: str) -> str:
        """Return stack memory for a value of this type, the same for the same ``use``."""
        return self.buffers.setdefault((use, llvm), f"%{use}{len(self.buffers)}")

    # ---- values

    def constant(self, type_: Type, bits: int) -> Lowered:
        """Return a constant."""
        text = literal(bits, type_.element)
        if type_.shape is None:
            return Lowered(type_, text=text, bits=bits)
        return Lowered(type_, scalar=text, bits=bits)

    def result(self, type_: Type, text: str, shape: tuple[int, ...] | None) -> Lowered:
        """Return the record of a result that was computed at ``shape``, None for a scalar."""
        if type_.shape is None or shape is not None:
            return Lowered(type_, text=text)
        return Lowered(type_, scalar=text)

    def even(self, *values: Lowered) -> tuple[tuple[int, ...] | None, list[str]]:
        """Return the shape to compute at, None for scalars, and the operands at this shape."""
        if all(value.type.shape is None or value.scalar for value in values):
            return None, [value.scalar or value.text for value in values]
        shape = next(v.type.shape for v in values if v.type.shape is not None)
        return shape, [self.vector(value) for value in values]

    def one(self, value: Lowered) -> str:
        """Return the operand of a value, a scalar for a tensor of one element."""
        return value.scalar if value.scalar and value.type.size == 1 else self.vector(value)

    def formed(self, value: Lowered) -> Lowered:
        """Return the value with its vector written here, for uses in other blocks."""
        if value.type.shape is None or value.scalar:
            return value
        return replace(value, text=self.vector(value))

    def consecutive(self, type_: Type, start: str, root: Value | None = None) -> Lowered:
        """Return a tensor of consecutive elements from ``start``."""
        if type_.size == 1:
            return Lowered(type_, scalar=start, root=root)
        return Lowered(type_, start=start, root=root)

    def vector(self, value: Lowered) -> str:
        """Return the operand of a value, for a tensor its vector, written if it is missing."""
        if value.text:
            return value.text
        if value.bits is not None:
            return spread(llvm_type(value.type.scalar), value.scalar, value.type.size)
        if value.scalar:
            return self._splat(value.type, value.scalar)
        if value.live:
            return self._mask(value.type, value.live)
        index = "i64" if value.type.element == POINTER else value.type.element
        counted = Type(index, value.type.shape)
        numbers = ", ".join(f"{index} {i}" for i in range(value.type.size))
        if value.type.element == POINTER:
            pointee = llvm_type(Type(str(value.type.pointee)))
            vector = f"{llvm_type(counted)} <{numbers}>"
            return self.op(f"getelementptr {pointee}, ptr {value.start}, {vector}")
        start = self._splat(counted, value.start)
        return self.op(f"add {llvm_type(counted)} {start}, <{numbers}>")

    def _splat(self, type_: Type, scalar: str) -> str:
        vector, element = llvm_type(type_), llvm_type(type_.scalar)
        first = self.op(f"insertelement {vector} poison, {element} {scalar}, i32 0")
        mask = f"<{type_.size} x i32> zeroinitializer"
        return self.op(f"shufflevector {vector} {first}, {vector} poison, {mask}")

    def _mask(self, type_: Type, live: str) -> str:
        """Return the mask whose first ``live`` elements are true, by a comparison of bytes."""
        element = "i8" if type_.size < 128 else "i32"
        narrow = self.op(f"trunc i64 {live} to {element}")
        counted = Type(element, type_.shape)
        numbers = ", ".join(f"{element} {i}" for i in range(type_.size))
        return self.op(f"icmp ult {llvm_type(counted)} <{numbers}>, {self._splat(counted, narrow)}")

    def pick(self, vector: str, element: Type, size: int, lanes: list[int]) -> str:
        """Return the elements ``lanes`` of a vector of ``size``; a scalar for one element."""
        type_ = f"<{size} x {llvm_type(element)}>"
        if len(lanes) == 1:
            return self.op(f"extractelement {type_} {vector}, i32 {lanes[0]}")
        chosen = ", ".join(f"i32 {lane}" for lane in lanes)
        mask = f"<{len(lanes)} x i32> <{chosen}>"
        return self.op(f"shufflevector {type_} {vector}, {type_} poison, {mask}")


def spread(llvm: str, text: str, size: int) -> str:
    """Return the constant vector of equal elements."""
    return f"<{', '.join([f'{llvm} {text}'] * size)}>"


def broadcast_lanes(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Return the flat index in shape ``before`` of each element of the broadcast to ``after``."""
    lanes = []
    for position in range(prod(after)):
        lane, stride, rest = 0, 1, position
        for old, new in zip(reversed(before), reversed(after), strict=True):
            rest, index = divmod(rest, new)
            lane += (index if old > 1 else 0) * stride
            stride *= old
        lanes.append(lane)
    return lanes
