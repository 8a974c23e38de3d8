"""Loads and stores in LLVM IR, which access only the elements under the mask."""

from collections.abc import Callable
from typing import NamedTuple

from fused_optim.backends.native.emitter import Emitter, Lowered, llvm_type, suffix
from fused_optim.backends.native.tree import FLOATS, INTEGERS, POINTER, Type, Value


class Masking(NamedTuple):
    """The widths in bytes of masked accesses that have instructions; others become loops.

    Attributes:
        moves: widths for masked loads and stores of consecutive elements.
        gathers: widths for masked loads and stores at arbitrary addresses.
    """

    moves: frozenset[int]
    gathers: frozenset[int]


def width(type_: Type) -> int:
    """Return the size of an element in bytes."""
    return 8 if type_.element == POINTER else (INTEGERS | FLOATS)[type_.element] // 8


class Memory:
    """A writer of loads and stores.

    Args:
        emitter: output.
        masking: widths of masked accesses of the target.
        is_read_only: function that returns True if no store goes through an argument.
    """

    def __init__(
        self, emitter: Emitter, masking: Masking, is_read_only: Callable[[Value], bool]
    ) -> None:
        self.emitter, self.masking, self.is_read_only = emitter, masking, is_read_only

    def load(self, pointer: Lowered, mask: Lowered | None, other: Lowered | None) -> Lowered:
        """Load elements; where the mask is false the result is ``other``, or zero without it."""
        type_ = pointer.type.pointed
        llvm, size = llvm_type(type_), width(type_)
        if type_.shape is None or (pointer.scalar and (type_.size == 1 or mask is None)):
            return self.emitter.result(type_, self._load_one(pointer, mask, other), None)
        if pointer.start and mask is None:
            text = self.emitter.op(f"load {llvm}, ptr {pointer.start}, align {size}")
            return Lowered(type_, text=text)
        passed = "zeroinitializer" if other is None else self.emitter.vector(other)
        if size in (self.masking.moves if pointer.start else self.masking.gathers):
            called, address = self._intrinsic("load", pointer, llvm)
            operands = [address, ("i32", str(size)), self._masked(mask, type_), (llvm, passed)]
            return Lowered(type_, text=self.emitter.call(called, llvm, *operands))
        buffer, element = self.emitter.buffer(llvm, "elements"), llvm_type(type_.scalar)
        self.emitter.line(f"store {llvm} {passed}, ptr {buffer}")

        def copy(address: str, place: str) -> None:
            value = self.emitter.op(f"load {element}, ptr {address}, align {size}")
            self.emitter.line(f"store {element} {value}, ptr {place}, align {size}")

        self._each(pointer, mask, buffer, copy)
        return Lowered(type_, text=self.emitter.op(f"load {llvm}, ptr {buffer}"))

    def store(self, pointer: Lowered, value: Lowered, mask: Lowered | None) -> None:
        """Store the elements for which the mask is true."""
        type_ = value.type
        llvm, size = llvm_type(type_), width(type_)
        if type_.size == 1:
            self._store_one(pointer, value, mask)
            return
        text = self.emitter.vector(value)
        if pointer.start and mask is None:
            self.emitter.line(f"store {llvm} {text}, ptr {pointer.start}, align {size}")
            return
        if size in (self.masking.moves if pointer.start else self.masking.gathers):
            called, address = self._intrinsic("store", pointer, llvm)
            operands = [(llvm, text), address, ("i32", str(size)), self._masked(mask, type_)]
            self.emitter.call(called, "void", *operands)
            return
        buffer, element = self.emitter.buffer(llvm, "elements"), llvm_type(type_.scalar)
        self.emitter.line(f"store {llvm} {text}, ptr {buffer}")

        def copy(address: str, place: str) -> None:
            one = self.emitter.op(f"load {element}, ptr {place}, align {size}")
            self.emitter.line(f"store {element} {one}, ptr {address}, align {size}")

        self._each(pointer, mask, buffer, copy)

    # ---- one element

    def _load_one(self, pointer: Lowered, mask: Lowered | None, other: Lowered | None) -> str:
        type_ = pointer.type.pointed.scalar
        llvm = llvm_type(type_)
        never_written = pointer.root is not None and self.is_read_only(pointer.root)
        constant = ", !invariant.load !0" if never_written else ""
        address = pointer.scalar or pointer.text
        load = f"load {llvm}, ptr {address}, align {width(type_)}{constant}"
        if mask is None:
            return self.emitter.op(load)
        passed = "zeroinitializer" if other is None else other.scalar or other.text
        then, after = self.emitter.new("load", "loaded")
        before = self.emitter.block
        self.emitter.branch(mask.scalar or mask.text, then, after)
        self.emitter.label(then)
        loaded = self.emitter.op(load)
        self.emitter.jump(after)
        self.emitter.label(after)
        return self.emitter.op(f"phi {llvm} [ {loaded}, %{then} ], [ {passed}, %{before} ]")

    def _store_one(self, pointer: Lowered, value: Lowered, mask: Lowered | None) -> None:
        llvm, size = llvm_type(value.type.scalar), width(value.type)
        operand, address = value.scalar or value.text, pointer.scalar or pointer.text
        store = f"store {llvm} {operand}, ptr {address}, align {size}"
        if mask is None:
            self.emitter.line(store)
            return
        then, after = self.emitter.new("store", "stored")
        self.emitter.branch(mask.scalar or mask.text, then, after)
        self.emitter.label(then)
        self.emitter.line(store)
        self.emitter.jump(after)
        self.emitter.label(after)

    # ---- by intrinsics

    def _intrinsic(self, verb: str, pointer: Lowered, llvm: str) -> tuple[str, tuple[str, str]]:
        """Return the name of a masked access, and the operand with its address or addresses."""
        if pointer.start:
            return f"llvm.masked.{verb}.{suffix(llvm)}.p0", ("ptr", pointer.start)
        name = {"load": "gather", "store": "scatter"}[verb]
        addresses = llvm_type(pointer.type)
        operand = (addresses, self.emitter.vector(pointer))
        return f"llvm.masked.{name}.{suffix(llvm)}.{suffix(addresses)}", operand

    def _masked(self, mask: Lowered | None, type_: Type) -> tuple[str, str]:
        llvm = llvm_type(type_.of("i1"))
        if mask is None:
            mask = self.emitter.constant(type_.of("i1"), 1)
        return llvm, self.emitter.vector(mask)

    # ---- by loops

    def _each(
        self,
        pointer: Lowered,
        mask: Lowered | None,
        buffer: str,
        copy: Callable[[str, str], None],
    ) -> None:
        """Write a loop that copies the elements under the mask from or to a buffer."""
        emit, type_ = self.emitter, pointer.type
        element = llvm_type(Type(str(type_.pointee)))
        tested = mask is not None and not mask.live
        flags = self._spill(mask, type_.of("i1")) if mask is not None and tested else ""
        addresses = "" if pointer.start else self._spill(pointer, type_)
        count = mask.live if mask is not None and mask.live else str(type_.size)
        head, test, body, tail, after = emit.new("head", "test", "body", "tail", "after")
        before = emit.block
        emit.jump(head)
        emit.label(head)
        i, following = f"%i{head}", f"%n{head}"
        emit.line(f"{i} = phi i64 [ 0, %{before} ], [ {following}, %{tail} ]")
        emit.branch(emit.op(f"icmp ult i64 {i}, {count}"), test if tested else body, after)
        if tested:
            emit.label(test)
            flag = emit.op(f"load i8, ptr {emit.op(f'getelementptr i8, ptr {flags}, i64 {i}')}")
            emit.branch(emit.op(f"icmp ne i8 {flag}, 0"), body, tail)
        emit.label(body)
        if pointer.start:
            address = emit.op(f"getelementptr {element}, ptr {pointer.start}, i64 {i}")
        else:
            place = emit.op(f"getelementptr ptr, ptr {addresses}, i64 {i}")
            address = emit.op(f"load ptr, ptr {place}")
        copy(address, emit.op(f"getelementptr {element}, ptr {buffer}, i64 {i}"))
        emit.jump(tail)
        emit.label(tail)
        emit.line(f"{following} = add i64 {i}, 1")
        emit.jump(head)
        emit.label(after)

    def _spill(self, value: Lowered, type_: Type) -> str:
        """Store a value in stack memory, a mask as bytes; return the buffer."""
        text, llvm = self.emitter.vector(value), llvm_type(type_)
        if type_.element == "i1":
            mask, llvm = llvm, llvm_type(type_.of("i8"))
            text = self.emitter.op(f"zext {mask} {text} to {llvm}")
        buffer = self.emitter.buffer(llvm, "mask" if type_.element == "i1" else "addresses")
        self.emitter.line(f"store {llvm} {text}, ptr {buffer}")
        return buffer
