"""Instructions, basic blocks and the paths through them, whatever the instruction set."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

# more paths than this are no longer a kernel of this library
_MOST_PATHS = 4096
# entries of a row of the table before the addresses: its length and its place (kernels/update.py)
_HEAD = 2


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        op: its name with all modifiers.
        operands: the rest, as it is written.
        guard: the predicate register it depends on, without ``!``; empty if there is none.
        jump: the label it may jump to; empty if it does not jump.
        ends: the next instruction is not executed after it (if there is no guard).
    """

    op: str
    operands: str
    guard: str = ""
    jump: str = ""
    ends: bool = False


class Access(NamedTuple):
    """A read or write of global memory by one thread.

    Attributes:
        store: it is a write.
        column: of the table of addresses; -1 if the address is no column's.
        size: bytes.
        masked: whether it happens depends on the number of elements.
    """

    store: bool
    column: int
    size: int
    masked: bool = False


class Block:
    """Instructions that are executed one after the other.

    Attributes:
        code: the instructions.
        following: the blocks that may come next; none after the last.
    """

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.following: list[Block] = []


def blocks(items: Iterable[Instruction | str]) -> Block:
    """The first block of a program, given its instructions and labels (strings) in order."""
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
    """Every way from the first block to an end that passes no block to avoid.

    A loop is gone through once.

    Raises:
        ValueError: there are too many.
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
    """Every block that can be come to."""
    found, stack = [first], [first]
    while stack:
        for following in stack.pop().following:
            if following not in found:
                found.append(following)
                stack.append(following)
    return found


class Pointer(NamedTuple):
    """What a register is known to point to.

    Attributes:
        base: ``"arguments"``, ``"table"`` or ``"column <i>"``.
        offset: bytes beyond what is not known at compile time.
    """

    base: str
    offset: int = 0

    def read(self, byte: int) -> "Pointer | None":
        """What the 8 bytes at ``byte`` from here are, if it is known."""
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
        """The column pointed into, or -1."""
        return int(self.base.removeprefix("column ")) if self.base.startswith("column ") else -1


def constant(operand: str) -> int | None:
    """The value of an operand that is written out."""
    operand = operand.strip()
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", operand):
        return int(operand, 0)
    return None
