"""Parser of PTX text: instructions and declarations, without their meaning."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .errors import Unsupported

_BITS = {"pred": 1} | {f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64)}
_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
_STATEMENT = re.compile(
    r"\s*(?:"
    r"(?P<label>[$\w]+)\s*:"
    r"|(?P<scope>[{}])"
    r"|(?P<lined>\.(?:loc|file)\b[^\n]*)"
    r"|(?P<rest>[^;]*);)"
)
_INSTRUCTION = re.compile(
    r"(?:@(?P<negated>!?)(?P<predicate>%\w+)\s+)?"
    r"(?P<opcode>[\w.:]+)\s*"
    r"(?P<operands>.*)"
)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s][^,]*")


class Parameter(NamedTuple):
    """A kernel parameter and its size."""

    name: str
    bits: int


class Registers:
    """The sizes of the declared registers."""

    def __init__(self) -> None:
        self._ranges: dict[str, int] = {}
        self._names: dict[str, int] = {}

    def declare(self, kind: str, names: str) -> None:
        """Add the rest of a ``.reg`` directive: ``%r<7>`` or a list of names."""
        if kind not in _BITS:
            raise Unsupported(f"register of type .{kind}")
        for name in names.split(","):
            prefix, count, _ = name.strip().partition("<")
            if not prefix.startswith("%"):  # as in assembly within braces, where names are local
                raise Unsupported(f"register {prefix}")
            table = self._ranges if count else self._names
            table[prefix] = _BITS[kind]

    def bits(self, name: str) -> int:
        """Return the size of a register in bits, 1 for a predicate."""
        bits = self._names.get(name) or self._ranges.get(name.rstrip("0123456789"))
        if bits is None:
            raise Unsupported(f"register {name} is not declared")
        return bits


@dataclass(frozen=True)
class Instruction:
    """One instruction, with the declarations of its kernel that decoding needs."""

    line: int
    text: str
    predicate: str | None
    negated: bool
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    registers: Registers
    symbols: Mapping[str, int]

    @property
    def type(self) -> str:
        """Return the last modifier, by convention the type of the operation."""
        return self.modifiers[-1] if self.modifiers else ""

    def allow(self, *modifiers: str) -> None:
        """Raise Unsupported if there is a modifier, other than the type, that is not listed."""
        for modifier in self.modifiers[:-1]:
            if modifier not in modifiers:
                raise Unsupported(f"modifier .{modifier}")

    def expect_operands(self, *counts: int) -> None:
        """Raise Unsupported unless the number of operands is one of these."""
        if len(self.operands) not in counts:
            raise Unsupported(f"{len(self.operands)} operands")


@dataclass(frozen=True)
class Kernel:
    """The one kernel of a PTX module."""

    name: str
    parameters: tuple[Parameter, ...]
    threads: int | None
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def elements(operand: str) -> tuple[str, ...]:
    """Return the elements of ``{a, b}``, or the operand itself."""
    if not operand.startswith("{"):
        return (operand,)
    return tuple(part.strip() for part in operand[1:-1].split(","))


def parse(ptx: str) -> Kernel:
    """Read the one kernel of a PTX module.

    Raises:
        Unsupported: the module declares something that is not implemented.
    """
    # comments become blanks, so that positions keep their line
    text = re.sub(r"/\*.*?\*/", lambda found: re.sub(r"[^\n]", " ", found.group()), ptx, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise Unsupported(f"{len(entries)} kernels in one module")
    name, parameters, directives = entries[0].groups()
    body = _Body(text, entries[0].end(), _symbols(text))
    try:
        body.read()
    except Unsupported as reason:
        raise Unsupported(f"{reason}: kernel {name}, PTX line {body.line}") from None
    return Kernel(
        name, _parameters(parameters), _threads(directives), tuple(body.instructions), body.labels
    )


def _parameters(text: str) -> tuple[Parameter, ...]:
    found = []
    for declaration in filter(None, map(str.strip, text.split(","))):
        words = declaration.split()
        kind = words[1].lstrip(".")
        if words[0] != ".param" or kind not in _BITS or words[-1].endswith("]"):
            raise Unsupported(f"parameter {declaration}")
        found.append(Parameter(words[-1], _BITS[kind]))
    return tuple(found)


def _threads(directives: str) -> int | None:
    if "cluster" in directives:
        raise Unsupported("clusters of blocks")
    found = re.search(r"\.reqntid\s+(\d+)", directives)
    return int(found.group(1)) if found else None


def _symbols(text: str) -> dict[str, int]:
    """Return the addresses of module-level names: all 0, as constants are not mapped."""
    found = re.findall(r"^\s*\.(extern|shared|global)\b([^;=\n]*?)([\w$]+)\[", text, re.M)
    shared = [name for kind, rest, name in found if kind == "shared" or ".shared" in rest]
    if len(shared) > 1 or any(kind == "shared" for kind, _, _ in found):
        raise Unsupported("shared memory other than that of the launch")
    return dict.fromkeys((name for _, _, name in found), 0)


class _Body:
    """The statements of a kernel, read in order."""

    def __init__(self, text: str, start: int, symbols: Mapping[str, int]) -> None:
        self.text, self.position, self.symbols = text, start, symbols
        self.line = text.count("\n", 0, start) + 1
        self.registers = Registers()
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}

    def read(self) -> None:
        depth = 1
        while depth:
            found = _STATEMENT.match(self.text, self.position)
            if not found:
                raise Unsupported("end of the text within the kernel")
            start = found.start(found.lastgroup)
            self.line += self.text.count("\n", self.position, start)
            if found["scope"]:
                depth += 1 if found["scope"] == "{" else -1
            elif found["label"]:
                self.labels[found["label"]] = len(self.instructions)
            elif found["rest"]:
                self._statement(found["rest"])
            self.line += self.text.count("\n", start, found.end())
            self.position = found.end()

    def _statement(self, text: str) -> None:
        text = " ".join(text.split())
        if text.startswith(".reg "):
            _, kind, names = text.split(" ", 2)
            self.registers.declare(kind[1:], names)
        elif text.startswith("."):
            if text.split()[0] not in (".pragma", ".param"):
                raise Unsupported(text)
        else:
            self.instructions.append(self._instruction(text))

    def _instruction(self, text: str) -> Instruction:
        found = _INSTRUCTION.fullmatch(text)
        if not found:
            raise Unsupported(text)
        opcode, *modifiers = found["opcode"].split(".")
        operands = (operand.strip() for operand in _OPERAND.findall(found["operands"]))
        return Instruction(
            self.line,
            text,
            found["predicate"],
            found["negated"] == "!",
            opcode,
            tuple(modifiers),
            tuple(operands),
            self.registers,
            self.symbols,
        )
