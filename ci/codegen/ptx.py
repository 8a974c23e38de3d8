"""Reader of PTX: the accesses of the path of full chunks, and operations that round otherwise.

Triton writes PTX in which every register is assigned once (but for a zero before a masked load),
so what a register points to can be found without following the flow of control.
"""

import re
from collections.abc import Iterator, Sequence

from ci.codegen.code import (
    Access,
    Block,
    Instruction,
    Pointer,
    blocks,
    constant,
    paths,
    reachable,
)

_LABEL = re.compile(r"^\s*(\$\w+):")
_STATEMENT = re.compile(r"^[{\s]*(?:@!?(%?\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?$")
_REGISTER = re.compile(r"%[a-z]+\d+")
_ACCESS = re.compile(r"(ld|st)\.(?:\w+\.)*?global\.(?:[\w:]+\.)*?(?:v(\d)\.)?[bfsu](\d+)$")
# one rounding an operation: .rn says so and forbids contraction by ptxas, none of these may be
_INEXACT = re.compile(
    r"(?:fma|mad)\.(?:\w+\.)*(?:f|bf)\d+"  # two operations, one rounding
    r"|\w+\.(?:\w+\.)*approx\S*|div\.full\S*"  # not the nearest number
    r"|\w+\.(?:\w+\.)*ftz\S*"  # denormals are not zero
    r"|(?:add|sub|mul|div|sqrt|rcp)\.(?!(?:\w+\.)*rn\b)(?:\w+\.)*f(?:32|64)\S*"
)


def _items(ptx: str) -> Iterator[Instruction | str]:
    """Yield the instructions and labels of the kernel."""
    body = ptx[ptx.index("\n{", ptx.index(".entry")) :]
    for line in body[: body.index("\n}")].splitlines():
        line = line.split("//")[0]
        if label := _LABEL.match(line):
            yield label[1]
            continue
        for statement in line.split(";"):
            if found := _STATEMENT.match(statement.strip()):
                guard, op, operands = found[1] or "", found[2], (found[3] or "").strip()
                jump = operands if op.split(".")[0] == "bra" else ""
                ends = bool(jump) or op in ("ret", "exit", "trap")
                yield Instruction(op, operands, guard, jump, ends)


def _split(operands: str) -> tuple[list[str], str]:
    """Return the registers of the first operand, and the other operands."""
    if operands.startswith("{"):
        first, _, rest = operands.partition("}")
    else:
        first, _, rest = operands.partition(",")
    return _REGISTER.findall(first), rest.lstrip(", ")


class _Flow:
    """Pointers in registers, and registers that depend on the number of elements."""

    def __init__(self, code: Sequence[Instruction], table: int) -> None:
        self.table = table
        self.pointers: dict[str, Pointer] = {}
        self.bounded: set[str] = set()
        while True:  # until a fixed point: a loop carries values back to its start
            before = (len(self.pointers), len(self.bounded))
            for instruction in code:
                self._follow(instruction)
            if before == (len(self.pointers), len(self.bounded)):
                return

    def address(self, operands: str) -> Pointer | None:
        """Return the pointer of the address in brackets, or None."""
        inside = re.search(r"\[\s*(%\w+)\s*(?:\+\s*(-?\w+)\s*)?\]", operands)
        if inside is None or inside[1] not in self.pointers:
            return None
        pointer = self.pointers[inside[1]]
        return pointer._replace(offset=pointer.offset + (constant(inside[2] or "0") or 0))

    def _follow(self, instruction: Instruction) -> None:
        op = instruction.op
        if op.startswith("ld.param"):
            name, index = instruction.operands.split(",")
            if re.search(rf"_param_{self.table}\b", index):
                self._points(name.strip(), Pointer("table"))
        elif op.startswith("ld."):
            self._load(instruction)
        elif op.split(".")[0] not in ("st", "bra", "ret", "bar", "red", "atom"):
            self._compute(instruction)

    def _load(self, instruction: Instruction) -> None:
        access, pointer = _ACCESS.match(instruction.op), self.address(instruction.operands)
        if access is None or pointer is None:
            return
        size = int(access[3]) // 8
        for lane, name in enumerate(_split(instruction.operands)[0]):
            value = pointer.read(lane * size) if size == 8 else None
            if value and value.base == "numel":
                self.bounded.add(name)
            elif value:
                self._points(name, value)

    def _compute(self, instruction: Instruction) -> None:
        names, rest = _split(instruction.operands)
        sources = _REGISTER.findall(rest)
        if any(source in self.bounded for source in sources):
            self.bounded.update(names)
        found = {self.pointers[source] for source in sources if source in self.pointers}
        if not found or ".f" in instruction.op or instruction.op.startswith("setp"):
            return
        pointer = found.pop()
        if instruction.op.startswith("add."):
            step = constant(rest.split(",")[-1])
            pointer = pointer._replace(offset=pointer.offset + (step or 0))
        for name in names:
            self._points(name, pointer)

    def _points(self, name: str, pointer: Pointer) -> None:
        if self.pointers.setdefault(name, pointer).base != pointer.base:
            raise ValueError(f"{name} points to {self.pointers[name].base} or {pointer.base}")


class Ptx:
    """The PTX of one kernel.

    Attributes:
        full: accesses of each path without a masked access of a column.
        masked: masked accesses of columns.
    """

    def __init__(self, ptx: str, table: int = 0) -> None:
        self.text = ptx
        first = blocks(_items(ptx))
        everything = reachable(first)
        self._flow = _Flow([step for block in everything for step in block.code], table)
        made = {block: self._accesses(block) for block in everything}
        # a path is masked if the number of elements decides about one of its accesses
        self.masked = [a for found in made.values() for a in found if a.masked]
        ways = paths(first, lambda block: any(access.masked for access in made[block]))
        found = [[access for block in way for access in made[block]] for way in ways]
        self.full = [way for way in found if any(access.column >= 0 for access in way)]

    def _accesses(self, block: Block) -> list[Access]:
        found = []
        for step in block.code:
            if access := _ACCESS.match(step.op):
                pointer = self._flow.address(step.operands)
                column = -1 if pointer is None else pointer.column
                size = int(access[2] or 1) * int(access[3]) // 8
                masked = column >= 0 and step.guard in self._flow.bounded
                found.append(Access(access[1] == "st", column, size, masked))
        return found

    @property
    def inexact(self) -> list[str]:
        """Return the operations that do not round once to the nearest number."""
        return [
            f"{step.op} {step.operands}"
            for step in _items(self.text)
            if isinstance(step, Instruction) and _INEXACT.fullmatch(step.op)
        ]
