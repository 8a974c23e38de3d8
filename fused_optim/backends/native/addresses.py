"""The lowering of consecutive indices, addresses and masks, so that accesses are vectors."""

from dataclasses import replace

from fused_optim.backends.native.emitter import Emitter, Lowered, broadcast_lanes, llvm_type
from fused_optim.backends.native.tree import Function, Operation, Region, Type, Value


class Addresses:
    """A writer of operations that preserve consecutive elements, and of changes of shape.

    Args:
        emitter: output.
    """

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter

    def lower(self, operation: Operation, operands: list[Lowered]) -> Lowered | None:
        """Return the result of an operation; None if it is not one of this class."""
        type_, name = operation.results[0].type, operation.name
        if name == "tt.make_range":
            return self.emitter.consecutive(type_, str(operation.attributes["start"]))
        if name == "tt.splat":
            one = operands[0]
            return Lowered(type_, scalar=one.text, bits=one.bits, root=one.root)
        if name == "tt.broadcast":
            return self._broadcast(type_, *operands)
        if name in ("tt.reshape", "tt.expand_dims"):
            return replace(operands[0], type=type_)
        if name == "tt.addptr":
            return self._advance(*operands)
        if name in ("arith.addi", "arith.subi"):
            return self._shift(name, *operands)
        if name == "arith.extsi" and operands[0].start:
            start = self._wide(operands[0].type, operands[0].start, type_)
            return self.emitter.consecutive(type_, start)
        if name == "arith.cmpi":
            return self._mask(str(operation.attributes["predicate"]), *operands)
        return None

    def _broadcast(self, type_: Type, value: Lowered) -> Lowered:
        if value.scalar:
            return replace(value, type=type_)
        assert value.type.shape is not None
        assert type_.shape is not None
        lanes = broadcast_lanes(value.type.shape, type_.shape)
        vector, size = self.emitter.vector(value), value.type.size
        return Lowered(type_, text=self.emitter.pick(vector, type_.scalar, size, lanes))

    def _shift(self, name: str, a: Lowered, b: Lowered) -> Lowered | None:
        """Return the sum or difference of consecutive integers and a scalar; None for others.

        Overflow is not handled: indices are far below the limit, which Triton assumes too.
        """
        if name == "arith.addi" and a.scalar and b.start:
            a, b = b, a
        if not (a.start and b.scalar):
            return None
        op = "add" if name == "arith.addi" else "sub"
        llvm = llvm_type(a.type.scalar)
        start = self.emitter.op(f"{op} {llvm} {a.start}, {b.scalar}")
        return self.emitter.consecutive(a.type, start)

    def _advance(self, pointer: Lowered, offset: Lowered) -> Lowered:
        """Return the addresses ``pointer + offset``, counted in elements."""
        type_, root, op = pointer.type, pointer.root, self.emitter.op
        element, index = llvm_type(Type(str(type_.pointee))), llvm_type(offset.type.scalar)
        if (pointer.scalar and offset.start) or (pointer.start and offset.scalar):
            base, index_text = pointer.scalar or pointer.start, offset.start or offset.scalar
            start = op(f"getelementptr {element}, ptr {base}, {index} {index_text}")
            return self.emitter.consecutive(type_, start, root)
        shape, (base, index_text) = self.emitter.even(pointer, offset)
        pointers, indices = (llvm_type(v.type._replace(shape=shape)) for v in (pointer, offset))
        text = op(f"getelementptr {element}, {pointers} {base}, {indices} {index_text}")
        return replace(self.emitter.result(type_, text, shape), root=root)

    def _wide(self, source: Type, start: str, result: Type) -> str:
        before, after = llvm_type(source.scalar), llvm_type(result.scalar)
        return self.emitter.op(f"sext {before} {start} to {after}")

    def _mask(self, predicate: str, a: Lowered, b: Lowered) -> Lowered | None:
        """Return the mask of consecutive integers below a scalar; None for other comparisons."""
        if predicate == "sgt":
            a, b, predicate = b, a, "slt"
        if predicate != "slt" or not (a.start and b.scalar):
            return None
        op, llvm, size = self.emitter.op, llvm_type(a.type.scalar), a.type.size
        left = op(f"sub {llvm} {b.scalar}, {a.start}")
        left = op(f"select i1 {op(f'icmp sgt {llvm} {left}, 0')}, {llvm} {left}, {llvm} 0")
        left = op(
            f"select i1 {op(f'icmp slt {llvm} {left}, {size}')}, {llvm} {left}, {llvm} {size}"
        )
        if llvm != "i64":
            left = op(f"zext {llvm} {left} to i64")
        return Lowered(a.type.of("i1"), live=left)


def stored_through(function: Function) -> set[Value | None]:
    """Return the arguments through which the kernel stores; None represents any argument.

    Addresses that are read from memory are addresses of columns and counters, never of a table.
    """
    origins: dict[Value, Operation] = {}
    stores: list[Value] = []

    def walk(region: Region) -> None:
        for operation in region.operations:
            origins.update(dict.fromkeys(operation.results, operation))
            if operation.name == "tt.store":
                stores.append(operation.operands[0])
            for inner in operation.regions:
                walk(inner)

    walk(function.body)
    arguments = set(function.body.arguments)
    written: set[Value | None] = set()
    for pointer in stores:
        one: Value | None = pointer
        while one is not None and one not in arguments:
            origin = origins.get(one)
            if origin is not None and origin.name == "tt.int_to_ptr":
                break
            follows = origin is not None and origin.name in FOLLOWED
            one = origin.operands[0] if origin is not None and follows else None
        else:
            written.add(one)
    return written


FOLLOWED = {"tt.addptr", "tt.splat", "tt.broadcast", "tt.reshape", "tt.expand_dims", "tt.bitcast"}
