"""The syntax tree of TTIR: a function of operations with operands, attributes and types."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

INTEGERS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}
FLOATS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
POINTER = "ptr"


class UnsupportedTTIR(RuntimeError):
    """An error: the TTIR has a construct that the native backend does not support."""


class Type(NamedTuple):
    """The type of a value.

    Attributes:
        element: element type: a key of INTEGERS or FLOATS, or POINTER.
        shape: shape of a tensor; None for a scalar.
        pointee: type that a pointer points to, a key of INTEGERS or FLOATS; None for others.
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
        """Type of an element."""
        return self._replace(shape=None)

    def of(self, element: str) -> "Type":
        """Return the type of the same shape with another element type, not POINTER."""
        return Type(element, self.shape)

    @property
    def pointed(self) -> "Type":
        """Type of a load through this pointer."""
        assert self.pointee is not None
        return Type(self.pointee, self.shape)

    def __str__(self) -> str:
        element = f"!tt.ptr<{self.pointee}>" if self.element == POINTER else self.element
        if self.shape is None:
            return element
        return f"tensor<{''.join(f'{size}x' for size in self.shape)}{element}>"


@dataclass(eq=False)
class Value:
    """A result of an operation, or an argument; compared by identity.

    Attributes:
        name: name in the text, unique in its region only.
        type: type of the value.
    """

    name: str
    type: Type


@dataclass(eq=False)
class Region:
    """A list of operations, the last of which is the terminator.

    Attributes:
        arguments: values that the enclosing operation sets.
        operations: operations with the terminator (scf.yield, scf.condition, tt.reduce.return).
    """

    arguments: list[Value] = field(default_factory=list)
    operations: list["Operation"] = field(default_factory=list)


@dataclass(eq=False)
class Operation:
    """An operation.

    Attributes:
        name: name with its dialect, such as ``"arith.addf"``.
        operands: operands in the order of the text.
        results: results, usually one.
        attributes: attributes that determine the result, by name.
        regions: regions of control flow and reductions.
        line: line of the text, from 1.
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
        name: name of the function.
        body: region of the function, whose arguments are the runtime arguments of the kernel.
        writer: program that wrote the text, for messages.
    """

    name: str
    body: Region
    writer: str = "triton"
