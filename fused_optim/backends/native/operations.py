"""The parser of operations of TTIR without regions, by the syntax in ``forms.FORMS``."""

from math import prod

from fused_optim.backends.native.constants import constant_bits
from fused_optim.backends.native.forms import PREDICATES, Form
from fused_optim.backends.native.scanner import Scanner
from fused_optim.backends.native.tree import FLOATS, INTEGERS, POINTER, Operation, Type, Value

BOOLEAN = Type("i1")


class OperationReader(Scanner):
    """A reader of operations, with the scopes of the values that are defined."""

    def __init__(self, text: str, writer: str) -> None:
        super().__init__(text, writer)
        self.scopes: list[dict[str, Value]] = [{}]

    # ---- values

    def _define(self, value: Value) -> Value:
        if value.name in self.scopes[-1]:
            raise self.refusal(f"`{value.name}` twice")
        self.scopes[-1][value.name] = value
        return value

    def _use(self) -> Value:
        """Read the name of a value."""
        name = self.next("value")
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise self.refusal(f"`{name}` before its definition")

    def _uses(self) -> list[Value]:
        """Read values with commas between them."""
        values = [self._use()]
        while self.take(","):
            values.append(self._use())
        return values

    def _match(self, values: list[Value], types: list[Type]) -> None:
        """Raise UnsupportedTTIR unless the values have the written types."""
        if [value.type for value in values] != types:
            written = ", ".join(map(str, types))
            raise self.refusal(f"other values as `{written}`")

    # ---- operations: the text after the name

    def _operands(self, name: str, form: Form) -> tuple[list[Value], dict[str, int]]:
        """Read operands, keywords, attributes, and the colon before the types."""
        operands = self._uses()
        self.flags(name, form)
        attributes = self.attributes(name, form) if self.take("{") else {}
        if len(operands) not in form.operands:
            raise self.refusal(f"{len(operands)} operands of `{name}`")
        if operands[0].type.element not in form.elements:
            raise self.refusal(f"`{name}` of `{operands[0].type}`")
        self.expect(":")
        return operands, attributes

    def _same(self, name: str, form: Form) -> Operation:
        """Read ``%a, %b : type``, which is also that of the result."""
        operands, _ = self._operands(name, form)
        type_ = self.type()
        self._match(operands, [type_] * len(operands))
        return Operation(name, operands, [Value("", type_)])

    def _comparison(self, name: str, form: Form) -> Operation:
        """Read ``predicate, %a, %b : type``; the result is i1."""
        predicate = self.next("word")
        if predicate not in PREDICATES[name]:
            raise self.refusal(f"`{name} {predicate}`")
        self.expect(",")
        operation = self._same(name, form)
        operation.attributes["predicate"] = predicate
        operation.results = [Value("", operation.operands[0].type.of("i1"))]
        return operation

    def _selection(self, name: str, form: Form) -> Operation:
        """Read ``%c, %a, %b : type`` for one condition, else ``: type of conditions, type``."""
        operands, _ = self._operands(name, form)
        types = self.types("")
        if len(types) == 1:
            types = [BOOLEAN, *types]
        condition, type_ = types[0], types[-1]
        if len(types) > 2 or condition not in (BOOLEAN, type_.of("i1")):
            raise self.refusal(f"these types of `{name}`")
        self._match(operands, [condition, type_, type_])
        return Operation(name, operands, [Value("", type_)])

    def _cast(self, name: str, form: Form) -> Operation:
        """Read ``%a : type to type``, or ``->``."""
        operands, attributes = self._operands(name, form)
        self._match(operands, [self.type()])
        if not self.take("->"):
            self.expect("to")
        source, type_ = operands[0].type, self.type()
        axis = attributes.get("axis")
        if type_.element not in form.results or not _may_become(name, source, type_, axis):
            raise self.refusal(f"`{name}` of `{source}` to `{type_}`")
        return Operation(name, operands, [Value("", type_)])

    def _constant(self, name: str, form: Form) -> Operation:
        """Read ``5 : type``, ``dense<5> : type`` or ``true``."""
        if self.take("{"):
            self.attributes(name, form)
        is_dense = self.take("dense")
        self.expect(*(["<"] if is_dense else []))
        text = self.next("word" if self.sort == "word" else "number")
        self.expect(*([">"] if is_dense else []))
        type_ = BOOLEAN
        if is_dense or text not in ("true", "false"):
            self.expect(":")
            type_ = self.type()
        bits = constant_bits(text, type_)
        if bits is None or is_dense != (type_.shape is not None):
            raise self.refusal(f"`{text}` as a constant of type `{type_}`")
        return Operation(name, [], [Value("", type_)], {"bits": bits})

    def _program(self, name: str, form: Form) -> Operation:
        """Read ``x : i32``, the one axis of the grid."""
        self.expect("x", ":", "i32")
        return Operation(name, [], [Value("", Type("i32"))])

    def _range(self, name: str, form: Form) -> Operation:
        """Read ``{end = 64 : i32, start = 0 : i32} : type``."""
        self.expect("{")
        attributes = self.attributes(name, form)
        self.expect(":")
        type_ = self.type()
        start, end = attributes.get("start", 0), attributes.get("end", 0)
        if type_ != Type("i32", (end - start,)):
            raise self.refusal(f"`{name}` from {start} to {end} as `{type_}`")
        return Operation(name, [], [Value("", type_)], {"start": start})

    def _address(self, name: str, form: Form) -> Operation:
        """Read ``%pointer, %offset : type, type``."""
        operands, _ = self._operands(name, form)
        self._match(operands, self.types(""))
        pointer, offset = (operand.type for operand in operands)
        if offset.element not in ("i32", "i64") or offset.shape != pointer.shape:
            raise self.refusal(f"`{name}` of `{pointer}` and `{offset}`")
        return Operation(name, operands, [Value("", pointer)])

    def _load(self, name: str, form: Form) -> Operation:
        """Read ``%pointer[, %mask[, %other]] : type of the pointer``."""
        operands, _ = self._operands(name, form)
        pointer = self._pointer(name)
        self._match(operands, [pointer, pointer.of("i1"), pointer.pointed][: len(operands)])
        return Operation(name, operands, [Value("", pointer.pointed)])

    def _store(self, name: str, form: Form) -> Operation:
        """Read ``%pointer, %value[, %mask] : type of the pointer``."""
        operands, _ = self._operands(name, form)
        pointer = self._pointer(name)
        self._match(operands, [pointer, pointer.pointed, pointer.of("i1")][: len(operands)])
        return Operation(name, operands, [])

    def _pointer(self, name: str) -> Type:
        type_ = self.type()
        if type_.element != POINTER:
            raise self.refusal(f"`{name}` of `{type_}`")
        return type_


def _may_become(name: str, source: Type, result: Type, axis: int | None) -> bool:
    """Return True if the cast ``name`` from ``source`` to ``result`` is valid."""
    if name in ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape"):
        same = (source.element, source.pointee) == (result.element, result.pointee)
        return same and _may_reshape(name, source.shape, result.shape, axis)
    if source.shape != result.shape:
        return False
    if name.endswith("bitcast") and POINTER in (source.element, result.element):
        return source.element == result.element
    bits = INTEGERS | FLOATS
    before, after = bits.get(source.element, 0), bits.get(result.element, 0)
    if name.startswith("arith.ext"):
        return before < after
    if name.startswith("arith.trunc"):
        # not supported: it must round float64 to 16 bits once
        return before > after and not (source.element == "f64" and after == 16)
    return before == after if name.endswith("bitcast") else True


def _may_reshape(
    name: str, before: tuple[int, ...] | None, after: tuple[int, ...] | None, axis: int | None
) -> bool:
    """Return True if the operation ``name`` from shape ``before`` to ``after`` is valid."""
    if after is None or (before is None) != (name == "tt.splat"):
        return False
    if before is None:
        return True
    if name == "tt.reshape":
        return prod(before) == prod(after)
    if name == "tt.expand_dims":
        return axis is not None and after == (*before[:axis], 1, *before[axis:])
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(old in (1, new) for old, new in pairs)
