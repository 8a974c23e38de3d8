"""Instructions, basic blocks and the paths through them, whatever the instruction set."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

# more paths than this are no longer a kernel of this library
_MOST_PATHS = 4096
# entries of a row of the table before the addresses: numel and offset (kernels/update.py)
_HEAD = 2


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        op: name with all modifiers.
        operands: text after the name.
        guard: predicate register without ``!``; empty if there is none.
        jump: label of the jump; empty if it does not jump.
        ends: True if the next instruction is not executed after it (without a guard).
    """

    op: str
    operands: str
    guard: str = ""
    jump: str = ""
    ends: bool = False


class Access(NamedTuple):
    """A read or write of global memory by one thread.

    Attributes:
        store: True for a write.
        column: index in the table of addresses; -1 if the address belongs to no column.
        size: bytes.
        masked: True if it depends on the number of elements.
    """

    store: bool
    column: int
    size: int
    masked: bool = False


class Block:
    """Instructions that are executed one after the other.

    Attributes:
        code: instructions in order.
        following: blocks that may come next; none after the last.
    """

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.following: list[Block] = []


def blocks(items: Iterable[Instruction | str]) -> Block:
    """Return the first block of a program, given instructions and labels (strings) in order."""
    first = current = Block()
    labels: dict[str, Block] = {}
    jumps: list[tuple[Block, str]] = []
    falls = True  # into the block that comes next
    for item in items:
        if isinstance(item, str):
            following = labels[item] = Block()
            if falls:
                current.following.append(following)
            current, falls = following, True
            continue
        current.code.append(item)
        if item.jump or item.ends:
            jumps += [(current, item.jump)] if item.jump else []
            following = Block()
            falls = not item.ends or bool(item.guard)
            if falls:
                current.following.append(following)
            current, falls = following, True
    for block, label in jumps:
        block.following.append(labels[label])
    return first


def paths(first: Block, avoid: Callable[[Block], bool]) -> Iterator[Sequence[Block]]:
    """Yield every path from the first block to an end without a block to avoid.

    A loop is executed once.

    Raises:
        ValueError: there are more than 4096 paths.
    """
    found = 0
    stack: list[tuple[Block, tuple[Block, ...]]] = [(first, ())]
    verdict: dict[Block, bool] = {}
    while stack:
        block, before = stack.pop()
        if block not in verdict:
            verdict[block] = avoid(block)
        if verdict[block] or block in before:
            continue
        way = (*before, block)
        if not block.following:
            found += 1
            if found > _MOST_PATHS:
                raise ValueError(f"more than {_MOST_PATHS} paths through the kernel")
            yield way
        stack += [(following, way) for following in block.following]


def reachable(first: Block) -> list[Block]:
    """Return every block that can be reached from ``first``."""
    found, stack = [first], [first]
    while stack:
        for following in stack.pop().following:
            if following not in found:
                found.append(following)
                stack.append(following)
    return found


class Pointer(NamedTuple):
    """The target of a pointer in a register, as far as it is known.

    Attributes:
        base: ``"arguments"``, ``"table"``, ``"numel"`` or ``"column <i>"``.
        offset: constant part of the offset in bytes.
    """

    base: str
    offset: int = 0

    def read(self, byte: int) -> "Pointer | None":
        """Return what the 8 bytes at offset ``byte`` point to, or None if it is unknown."""
        at = self.offset + byte
        if self.base == "arguments":
            return Pointer("table") if at == 0 else None
        if self.base == "table":
            if at < 8 * _HEAD:
                return Pointer("numel") if at == 0 else None
            return Pointer(f"column {at // 8 - _HEAD}")
        return None

    @property
    def column(self) -> int:
        """Return the index of the column, or -1."""
        return int(self.base.removeprefix("column ")) if self.base.startswith("column ") else -1


def constant(operand: str) -> int | None:
    """Return the value of a literal integer operand, or None."""
    operand = operand.strip()
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", operand):
        return int(operand, 0)
    return None
