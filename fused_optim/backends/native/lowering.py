"""The lowering of TTIR to LLVM IR: one function that runs programs until a counter ends."""

from collections.abc import Callable
from typing import NamedTuple

from fused_optim.backends.native.addresses import Addresses, stored_through
from fused_optim.backends.native.elementwise import Elementwise
from fused_optim.backends.native.emitter import Emitter, Lowered, llvm_type
from fused_optim.backends.native.memory import Masking, Memory
from fused_optim.backends.native.tree import (
    POINTER,
    Function,
    Operation,
    Region,
    Type,
    UnsupportedTTIR,
    Value,
)

ARGUMENTS = 3  # number of launch words before the arguments of the kernel


class Target(NamedTuple):
    """The properties of a processor that the IR depends on.

    Attributes:
        masking: widths of masked accesses that have instructions.
        has_half: True if an instruction converts float16.
        attributes: function attributes of LLVM IR.
    """

    masking: Masking
    has_half: bool
    attributes: str = ""


def lower(function: Function, target: Target) -> str:
    """Return the LLVM IR of a kernel.

    The function has one argument, the address of the launch words (int64): the index of the next
    program, which is incremented atomically; the number of programs that a thread takes at a time;
    the number of programs; the arguments of the kernel, 8 bytes each. Any number of threads may
    call it at the same time.
    """
    return Lowering(function, target).text()


class Lowering:
    """A lowering of one kernel."""

    def __init__(self, function: Function, target: Target) -> None:
        self.function, self.target = function, target
        self.emitter = Emitter()
        self.elementwise = Elementwise(self.emitter, target.has_half)
        self.addresses = Addresses(self.emitter)
        written = stored_through(function)
        self.memory = Memory(
            self.emitter, target.masking, lambda root: None not in written and root not in written
        )
        self.env: dict[Value, Lowered] = {}

    # ---- the frame of the function

    def text(self) -> str:
        """Return the text of the module."""
        emit = self.emitter
        self._arguments()
        emit.jump("turn")
        emit.label("turn")
        emit.line("%first = atomicrmw add ptr %launch, i64 %grain monotonic")
        emit.branch(emit.op("icmp slt i64 %first, %programs"), "take", "done")
        emit.label("take")
        end = emit.op("add i64 %first, %grain")
        most = emit.op(f"icmp slt i64 {end}, %programs")
        end = emit.op(f"select i1 {most}, i64 {end}, i64 %programs")
        emit.jump("program")
        emit.label("program")
        emit.line("%number = phi i64 [ %first, %take ], [ %following, %next ]")
        emit.line("%pid = trunc i64 %number to i32")
        self._operations(self.function.body)
        emit.jump("next")
        emit.label("next")
        emit.line("%following = add i64 %number, 1")
        emit.branch(emit.op(f"icmp slt i64 %following, {end}"), "program", "turn")
        emit.label("done")
        emit.line("ret void")
        return self._module()

    def _module(self) -> str:
        buffers = self.emitter.buffers.items()
        return "\n".join(
            [
                *sorted(self.emitter.declarations.values()),
                f"define void @{self.function.name}(ptr noalias %launch) #0 {{",
                "entry:",
                *[f"  {name} = alloca {llvm}" for (_, llvm), name in buffers],
                *self.emitter.lines,
                "}",
                # LLVM must not replace a loop by a call of memcpy
                f'attributes #0 = {{ nounwind "no-builtins" {self.target.attributes} }}',
                "!0 = !{}",
                "",
            ]
        )

    def _arguments(self) -> None:
        for i, name in enumerate(("grain", "programs"), 1):
            place = self.emitter.op(f"getelementptr i64, ptr %launch, i64 {i}")
            self.emitter.line(f"%{name} = load i64, ptr {place}")
        self.emitter.line("%grid = trunc i64 %programs to i32")
        for i, argument in enumerate(self.function.body.arguments, ARGUMENTS):
            if argument.type.shape is not None:
                raise UnsupportedTTIR(f"an argument of type {argument.type}")
            place = self.emitter.op(f"getelementptr i64, ptr %launch, i64 {i}")
            text = self.emitter.op(f"load {llvm_type(argument.type)}, ptr {place}, align 8")
            root = argument if argument.type.element == POINTER else None
            self.env[argument] = Lowered(argument.type, text=text, root=root)

    # ---- operations

    def _operations(self, region: Region) -> list[Lowered]:
        """Write a region; return the operands of its terminator."""
        for operation in region.operations[:-1]:
            results = self._operation(operation)
            for value, lowered in zip(operation.results, results, strict=True):
                self.env[value] = lowered
        return [self.env[value] for value in region.operations[-1].operands]

    def _operation(self, operation: Operation) -> list[Lowered]:
        operands = [self.env[value] for value in operation.operands]
        special = SPECIAL.get(operation.name)
        if special is not None:
            return special(self, operation, operands)
        lowered = self.addresses.lower(operation, operands)
        if lowered is None:
            lowered = self.elementwise.lower(operation, operands)
        if lowered is None:
            raise UnsupportedTTIR(
                f"{self.function.writer} writes `{operation.name}`, which the native backend "
                f"cannot lower (line {operation.line} of TTIR)"
            )
        return [lowered]

    def _constant(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        type_ = operation.results[0].type
        return [self.emitter.constant(type_, int(operation.attributes["bits"]))]

    def _program(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        text = "%pid" if operation.name == "tt.get_program_id" else "%grid"
        return [Lowered(operation.results[0].type, text=text)]

    def _load(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        pointer, mask, other = (*operands, None, None)[:3]
        assert pointer is not None
        return [self.memory.load(pointer, mask, other)]

    def _store(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        pointer, value, mask = (*operands, None)[:3]
        assert pointer is not None
        assert value is not None
        self.memory.store(pointer, value, mask)
        return []

    # ---- control flow

    def _if(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        emit = self.emitter
        then, otherwise, after = emit.new("then", "else", "endif")
        emit.branch(operands[0].text, then, otherwise)
        yielded, ends = [], []
        for label, region in zip((then, otherwise), operation.regions, strict=True):
            emit.label(label)
            yielded.append([emit.one(value) for value in self._operations(region)])
            ends.append(emit.block)
            emit.jump(after)
        emit.label(after)
        return [
            self._phi(value.type, list(zip(texts, ends, strict=True)))
            for value, *texts in zip(operation.results, *yielded, strict=True)
        ]

    def _phi(self, type_: Type, coming: list[tuple[str, str]]) -> Lowered:
        """Write a phi; ``coming``: ``(operand, block)`` for each predecessor."""
        llvm = llvm_type(type_ if type_.size > 1 else type_.scalar)
        pairs = ", ".join(f"[ {text}, %{block} ]" for text, block in coming)
        text = self.emitter.op(f"phi {llvm} {pairs}")
        return self.emitter.result(type_, text, type_.shape if type_.size > 1 else None)

    def _head(self, label: str, initial: list[Lowered]) -> tuple[int, list[Lowered]]:
        """Write the head of a loop; return the line number of its phis, and the phis."""
        texts, before = [self.emitter.one(value) for value in initial], self.emitter.block
        self.emitter.jump(label)
        self.emitter.label(label)
        pairs = zip(initial, texts, strict=True)
        at = len(self.emitter.lines)
        return at, [self._phi(value.type, [(text, before)]) for value, text in pairs]

    def _again(self, label: str, at: int, values: list[Lowered]) -> None:
        """Finish the body of a loop: complete the phis with the values of the next iteration."""
        texts = [self.emitter.one(value) for value in values]
        for i, text in enumerate(texts, at):
            self.emitter.lines[i] += f", [ {text}, %{self.emitter.block} ]"
        self.emitter.jump(label)

    def _while(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        emit, (test, body) = self.emitter, operation.regions
        head, again, after = emit.new("while", "do", "done")
        at, carried = self._head(head, operands)
        self.env |= zip(test.arguments, carried, strict=True)
        condition, *handed = self._operations(test)
        # vectors must be written in this block, which dominates the body and the exit
        handed = [emit.formed(value) for value in handed]
        emit.branch(condition.text, again, after)
        emit.label(again)
        self.env |= zip(body.arguments, handed, strict=True)
        self._again(head, at, self._operations(body))
        emit.label(after)
        return handed

    def _for(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        emit, (body,) = self.emitter, operation.regions
        first, end, step, *initial = operands
        llvm = llvm_type(first.type)
        head, again, after = emit.new("for", "body", "endfor")
        at, (index, *carried) = self._head(head, [first, *initial])
        emit.branch(emit.op(f"icmp slt {llvm} {index.text}, {end.text}"), again, after)
        emit.label(again)
        self.env |= zip(body.arguments, [index, *carried], strict=True)
        yielded = self._operations(body)
        following = emit.op(f"add {llvm} {index.text}, {step.text}")
        self._again(head, at, [Lowered(first.type, text=following), *yielded])
        emit.label(after)
        return carried

    # ---- reductions

    def _reduce(self, operation: Operation, operands: list[Lowered]) -> list[Lowered]:
        """Reduce along the last axis: combine both halves until one element is left.

        The order is the same on every target.
        """
        (value,), (region,) = operands, operation.regions
        names = [one.name for one in region.operations[:-1]]
        handed, arguments = region.operations[-1].operands, region.arguments
        combined = region.operations[0]
        if len(names) != 1 or combined.operands != arguments or combined.results != handed:
            raise UnsupportedTTIR(
                f"{self.function.writer} writes a reduction by {names}, which the native backend "
                f"does not know (line {operation.line} of TTIR)"
            )
        assert value.type.shape is not None
        length, type_ = value.type.shape[-1], operation.results[0].type
        rows, element = value.type.size // length, value.type.scalar
        text = self.emitter.one(value)
        while length > 1:
            half, size = length // 2, rows * length
            lanes = [row * length + i for row in range(rows) for i in range(half)]
            a = self.emitter.pick(text, element, size, lanes)
            b = self.emitter.pick(text, element, size, [lane + half for lane in lanes])
            shape = (rows * half,) if rows * half > 1 else None
            text = self.elementwise.binary(names[0], element._replace(shape=shape), a, b)
            length = half
        return [self.emitter.result(type_, text, type_.shape if rows > 1 else None)]


SPECIAL: dict[str, Callable[[Lowering, Operation, list[Lowered]], list[Lowered]]] = {
    "arith.constant": Lowering._constant,
    "tt.get_program_id": Lowering._program,
    "tt.get_num_programs": Lowering._program,
    "tt.load": Lowering._load,
    "tt.store": Lowering._store,
    "tt.reduce": Lowering._reduce,
    "scf.if": Lowering._if,
    "scf.while": Lowering._while,
    "scf.for": Lowering._for,
}
