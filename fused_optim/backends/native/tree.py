"""What a kernel's TTIR is read into: a function of operations with operands, attributes, types."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

INTEGERS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}
FLOATS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
POINTER = "ptr"


class UnsupportedTTIR(RuntimeError):
    """TTIR that the native backend does not know, by name."""


class Type(NamedTuple):
    """The type of a value.

    Attributes:
        element: one of INTEGERS or FLOATS, or POINTER.
        shape: of a tensor; None for a scalar.
        pointee: what a pointer points to: one of INTEGERS or FLOATS.
    """

    element: str
    shape: tuple[int, ...] | None = None
    pointee: str | None = None

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape or ())

    @property
    def scalar(self) -> "Type":
        """The type of an element."""
        return self._replace(shape=None)

    def of(self, element: str) -> "Type":
        """The same shape of other elements, which are no pointers."""
        return Type(element, self.shape)

    @property
    def pointed(self) -> "Type":
        """What a load through this pointer gives."""
        assert self.pointee is not None
        return Type(self.pointee, self.shape)

    def __str__(self) -> str:
        element = f"!tt.ptr<{self.pointee}>" if self.element == POINTER else self.element
        if self.shape is None:
            return element
        return f"tensor<{''.join(f'{size}x' for size in self.shape)}{element}>"


@dataclass(eq=False)
class Value:
    """What an operation gives, or an argument; each is itself alone, whatever its name.

    Attributes:
        name: in the text; names of different regions may be the same.
        type: of the value.
    """

    name: str
    type: Type


@dataclass(eq=False)
class Region:
    """Operations in order, the last of which may hand values on.

    Attributes:
        arguments: values that the operation around the region sets.
        operations: the terminator (scf.yield, scf.condition, tt.reduce.return) among them.
    """

    arguments: list[Value] = field(default_factory=list)
    operations: list["Operation"] = field(default_factory=list)


@dataclass(eq=False)
class Operation:
    """One operation.

    Attributes:
        name: with its dialect, such as ``"arith.addf"``.
        operands: in the order of the text.
        results: usually one.
        attributes: those that matter for the result.
        regions: of control flow and reductions.
        line: of the text, from 1.
    """

    name: str
    operands: list[Value]
    results: list[Value]
    attributes: dict[str, Any] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)
    line: int = 0


@dataclass(eq=False)
class Function:
    """A kernel.

    Attributes:
        name: of the function.
        body: its region, whose arguments are those of the kernel at run time.
        writer: the Triton that wrote the text, for messages.
    """

    name: str
    body: Region
    writer: str = "triton"
