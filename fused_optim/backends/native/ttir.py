"""The parser of TTIR, which raises UnsupportedTTIR for every unknown construct.

The text of TTIR is not a stable interface, so the parser never skips anything unknown.
"""

from fused_optim.backends.native.forms import FORMS, Form
from fused_optim.backends.native.operations import BOOLEAN, OperationReader
from fused_optim.backends.native.tree import Function, Operation, Region, Type, Value

DEEPEST = 50  # maximum depth of nested regions


def parse(text: str, writer: str = "triton") -> Function:
    """Parse a module with one function.

    Args:
        text: module without locations.
        writer: program that wrote the text, such as ``"triton 3.9.0"``, for messages.

    Raises:
        UnsupportedTTIR: an operation, attribute or type is unknown, or the text is not TTIR.
    """
    return Parser(text, writer).module()


class Parser(OperationReader):
    """A recursive descent parser of a module; this class reads operations with regions."""

    # ---- structure

    def module(self) -> Function:
        """Read the module, which has one function."""
        self.expect("module", "{", "tt.func", "public")
        name = self.next("symbol")[1:]
        arguments = self._arguments(FORMS["tt.func"])
        if self.take("attributes"):
            self.expect("{")
            self.attributes("tt.func", FORMS["tt.func"])
        self.expect("{")
        body = self._operations(arguments, "tt.return")
        self.expect("}")
        if self.sort != "end":
            raise self.refusal(f"`{self.tokens[self.at].text}` after the function")
        return Function(name, body, self.writer)

    def _arguments(self, form: Form | None = None) -> list[Value]:
        """Read the arguments of a function, or of a region, with their types."""
        arguments: list[Value] = []
        self.expect("(")
        while not self.take(")"):
            self.expect(*([","] if arguments else []))
            name = self.next("value")
            self.expect(":")
            arguments.append(self._define(Value(name, self.type())))
            if form is not None and self.take("{"):
                self.attributes("an argument", form)
        return arguments

    def _region(self, terminator: str, arguments: list[Value]) -> Region:
        """Read a region in braces."""
        self.expect("{")
        self.scopes.append({})
        for argument in arguments:
            self._define(argument)
        if self.sort == "block":
            self.next("block")
            arguments = self._arguments()
            self.expect(":")
        region = self._operations(arguments, terminator)
        self.scopes.pop()
        return region

    def _operations(self, arguments: list[Value], terminator: str) -> Region:
        """Read operations up to ``terminator``, the only one allowed, and the closing brace."""
        region = Region(arguments)
        if len(self.scopes) > DEEPEST:
            raise self.refusal(f"more than {DEEPEST} regions inside each other")
        ended = False
        while not self.take("}"):
            operation = self._operation()
            is_end = operation.name == terminator
            if ended or (FORMS[operation.name].ends and not is_end):
                raise self.refusal(f"`{operation.name}` in this place", operation.line)
            ended = is_end
            region.operations.append(operation)
        if not ended:
            if terminator != "scf.yield":  # omitted in the text if it has no operands
                raise self.refusal(f"no `{terminator}` before `}}`")
            region.operations.append(Operation(terminator, [], []))
        return region

    def _operation(self) -> Operation:
        """Read one operation with the names of its results."""
        names = self._results()
        token = self.tokens[self.at]
        name = self.next("string" if self.sort == "string" else "word").strip('"')
        form = FORMS.get(name)
        if form is None or not form.reader:
            raise self.refusal(f"`{name}`", token.line)
        operation: Operation = getattr(self, f"_{form.reader}")(name, form)
        operation.line = token.line
        if len(operation.results) != len(names):
            raise self.refusal(f"{len(names)} results of `{name}`", token.line)
        for result, result_name in zip(operation.results, names, strict=True):
            result.name = result_name
            self._define(result)
        return operation

    def _results(self) -> list[str]:
        """Read ``%0 =``, or ``%0:2 =``, if it is there."""
        if self.sort != "value":
            return []
        names = [self.next("value")]
        if self.take(":"):
            names = [f"{names[0]}#{i}" for i in range(min(self.whole(), 1000))]
        self.expect("=")
        return names

    # ---- terminators of regions

    def _nothing(self, name: str, form: Form) -> Operation:
        return Operation(name, [], [])

    def _yielded(self, name: str, form: Form) -> Operation:
        """Read ``%a, %b : type, type``, or an empty list."""
        operands = self._uses() if self.sort == "value" else []
        if operands:
            self.expect(":")
            self._match(operands, self.types(""))
        return Operation(name, operands, [])

    def _condition(self, name: str, form: Form) -> Operation:
        """Read ``(%condition) %a, %b : type, type``."""
        self.expect("(")
        condition = self._use()
        self._match([condition], [BOOLEAN])
        self.expect(")")
        return Operation(name, [condition, *self._yielded(name, form).operands], [])

    # ---- operations with regions

    def _conditional(self, name: str, form: Form) -> Operation:
        """Read ``%c [-> (types)] {...} [else {...}]``."""
        condition = self._use()
        self._match([condition], [BOOLEAN])
        types: list[Type] = []
        if self.take("->"):
            self.expect("(")
            types = self.types(")")
        regions = [self._region("scf.yield", [])]
        if self.take("else"):
            regions.append(self._region("scf.yield", []))
        else:
            regions.append(Region([], [Operation("scf.yield", [], [])]))
        for region in regions:
            self._match(region.operations[-1].operands, types)
        return Operation(name, [condition], self._new(types), {}, regions)

    def _while_loop(self, name: str, form: Form) -> Operation:
        """Read ``(%a = %b, ...) : (types) -> (types) {... condition} do {... yield}``."""
        self.expect("(")
        carried, initial = self._initial()
        self.expect(":", "(")
        before = self.types(")")
        self.expect("->", "(")
        after = self.types(")")
        self._match(initial, before)
        first = self._region("scf.condition", carried)
        self._match(first.operations[-1].operands[1:], after)
        self.expect("do")
        second = self._region("scf.yield", [])
        self._match(second.arguments, after)
        self._match(second.operations[-1].operands, before)
        return Operation(name, initial, self._new(after), {}, [first, second])

    def _for_loop(self, name: str, form: Form) -> Operation:
        """Read ``%i = %first to %end step %step [iter_args(...) -> (types)] [: type] {...}``."""
        index = Value(self.next("value"), Type("i32"))
        self.expect("=")
        bounds = [self._use()]
        for word in ("to", "step"):
            self.expect(word)
            bounds.append(self._use())
        carried: list[Value] = []
        initial: list[Value] = []
        types: list[Type] = []
        if self.take("iter_args"):
            self.expect("(")
            carried, initial = self._initial()
            self.expect("->", "(")
            types = self.types(")")
            self._match(initial, types)
        if self.take(":"):
            index.type = self.type()
        if index.type.element not in ("i32", "i64") or index.type.shape is not None:
            raise self.refusal(f"a loop over `{index.type}`")
        self._match(bounds, [index.type] * 3)
        region = self._region("scf.yield", [index, *carried])
        self._match(region.operations[-1].operands, types)
        return Operation(name, [*bounds, *initial], self._new(types), {}, [region])

    def _reduction(self, name: str, form: Form) -> Operation:
        """Read ``(%a) <{axis = 0 : i32}> ({region}) : (type) -> type``."""
        self.expect("(")
        operand = self._use()
        self.expect(")", "<", "{")
        axis = self.attributes(name, form).get("axis", -1)
        self.expect(">", "(")
        region = self._region("tt.reduce.return", [])
        self.expect(")", ":", "(")
        self._match([operand], self.types(")"))
        self.expect("->")
        type_, whole = self.type(), operand.type
        shape = whole.shape or ()
        # rows are consecutive, so only a reduction along the last axis is implemented
        if axis != len(shape) - 1 or type_ != whole._replace(shape=shape[:-1] or None):
            raise self.refusal(f"`{name}` of `{whole}` along axis {axis} to `{type_}`")
        self._match(region.arguments, [whole.scalar] * 2)
        self._match(region.operations[-1].operands, [whole.scalar])
        return Operation(name, [operand], [Value("", type_)], {}, [region])

    def _initial(self) -> tuple[list[Value], list[Value]]:
        """Read ``%a = %b, ...)``: the loop-carried values, and their initial values."""
        carried: list[Value] = []
        initial: list[Value] = []
        while not self.take(")"):
            self.expect(*([","] if carried else []))
            name = self.next("value")
            self.expect("=")
            initial.append(self._use())
            carried.append(Value(name, initial[-1].type))
        return carried, initial

    def _new(self, types: list[Type]) -> list[Value]:
        return [Value("", type_) for type_ in types]
