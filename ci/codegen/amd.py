"""Reader of the assembly of AMD GPUs, as :mod:`ci.codegen.ptx` is of PTX.

Registers are physical here and used over and over, so what they point to is followed along a path.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ci.codegen.code import Access, Instruction, Pointer, blocks, constant, paths

_EXEC = (["exec"], ["exec_lo"])
_LABEL = re.compile(r"^(\.LBB\w+):")
_INSTRUCTION = re.compile(r"^\t([a-z]\w+)(?:\s+(.*))?$")
_ACCESS = re.compile(r"(?:global|flat|buffer)_(load|store)_(?:lds_)?([a-z]\w*)$")
# bytes of an access by the last part of its name: dword counts on GFX9, bits on GFX11
_SIZES = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
_SIZES |= {"8": 1, "16": 2, "32": 4, "64": 8, "96": 12, "128": 16}
# Division and root that round to nearest are sequences that the compiler writes around the
# hardware's approximations: a scaled reciprocal (or root), Newton steps by fma, and a last step
# that repairs the special cases. So fma, rcp and sqrt do appear where nothing is contracted or
# approximated, but in fixed numbers: per div_fixup and per root, in each precision, these.
_FMA_PER_DIVISION = {"f32": 5, "f64": 5}
# by what a root starts from; in float32 it is the reciprocal root before Triton 3.7
_FMA_PER_ROOT = {"f32": {"sqrt": 2, "rsq": 5}, "f64": {"rsq": 7}}
# float64 becomes int64 in two halves, exactly, which is the only use of floor
_FMA_PER_FLOOR = 1
# From Triton 3.8 on, what converts an operand from half precision and multiplies or adds it is one
# instruction: a fused multiplication and addition, where the other operation changes nothing.
_ONE_ROUNDING = re.compile(
    r"\bv_fma_mix_f32 \S+ (?:\S+, \S+, neg\(0\)|-?1\.0, \S+, \S+|\S+, -?1\.0, \S+)"
)


def _items(text: str) -> Iterator[Instruction | str]:
    """Yield the instructions and labels of the kernel."""
    code = text[: text.index("\n\t.section")] if "\n\t.section" in text else text
    seen = set()
    for line in code.splitlines():
        line = line.split(";")[0].rstrip()
        if label := _LABEL.match(line):
            seen.add(label[1])
            yield label[1]
        # two instructions may share a line
        for found in map(_INSTRUCTION.match, line.replace(" :: ", "\n\t").split("\n")):
            if found is None:
                continue
            op, operands = found[1], found[2] or ""
            # a jump over code for which no thread is active is no other path
            if op == "s_cbranch_execz":
                continue
            if op == "s_cbranch_execnz" and operands not in seen:
                yield Instruction(op, operands, "", operands, True)
            elif op.startswith("s_cbranch"):
                # the guard only says that the jump is not always taken
                yield Instruction(op, operands, "scc", operands)
            elif op == "s_branch":
                yield Instruction(op, operands, "", operands, True)
            else:
                yield Instruction(op, operands, "", "", op == "s_endpgm")


def _arguments(text: str) -> int:
    """Return the first of the two registers that hold the address of the arguments at the start."""
    # sizes of the registers before them, which a kernel may or may not request
    before = {"private_segment_buffer": 4, "dispatch_ptr": 2, "queue_ptr": 2}
    return sum(n for name, n in before.items() if f".amdhsa_user_sgpr_{name} 1" in text)


def _registers(operand: str) -> list[str]:
    """Return the 32-bit registers of an operand: ``v2`` and ``v3`` for ``v[2:3]``."""
    if span := re.fullmatch(r"[-|]*([sva])\[(\d+):(\d+)\]\|?", operand):
        return [f"{span[1]}{i}" for i in range(int(span[2]), int(span[3]) + 1)]
    if operand.startswith("vcc"):
        return ["vcc"]
    return [operand.strip("-|")] if re.fullmatch(r"[-|]*[sva]\d+\|?", operand) else []


def _operands(text: str) -> list[str]:
    return [part.split()[0] for part in re.split(r",\s*", text) if part.strip()]


class _Flow:
    """Pointers in registers along a path."""

    def __init__(self, arguments: int) -> None:
        start = Pointer("arguments")
        self.pointers = {f"s{arguments}": start, f"s{arguments + 1}": start}
        self.bounded: set[str] = set()  # registers that depend on the number of elements
        self.masks: list[bool] = []  # for each active mask: True if it depends on that number
        self.accesses: list[Access] = []

    def follow(self, step: Instruction) -> None:
        """Execute one instruction."""
        operands = _operands(step.operands)
        if access := _ACCESS.match(step.op):
            self._access(access, operands, step.operands)
        elif step.op.startswith("s_load"):
            self._scalar_load(operands)
        elif "saveexec" in step.op or step.op.startswith("v_cmpx") or operands[:1] in _EXEC:
            self._mask(step.op, operands)
        elif operands and not step.op.startswith(("s_cmp", "s_waitcnt", "s_cbranch")):
            self._compute(step.op, operands)

    def _mask(self, op: str, operands: list[str]) -> None:
        """Disable threads, or enable disabled threads again."""
        names = [name for operand in operands for name in _registers(operand)]
        if op.startswith(("s_or_b", "s_mov_b")):
            del self.masks[-1:]
        else:
            self.masks.append(any(name in self.bounded for name in names))
        self.bounded.difference_update(_registers(operands[0]))

    def _known(self, operands: Sequence[str]) -> Pointer | None:
        """Return the pointer in the first register that has one, or None."""
        names = (name for operand in operands for name in _registers(operand))
        return next((self.pointers[n] for n in names if n in self.pointers and n != "vcc"), None)

    def _access(self, found: re.Match[str], operands: list[str], text: str) -> None:
        store = found[1] == "store"
        pointer = self._known([operands[0], *operands[2:]] if store else operands[1:])
        # half registers (d16, d16_hi) and signs say nothing about the bytes
        name = re.sub(r"_?d16(_hi)?_?", "", found[2])
        size = _SIZES[re.sub(r"^[biu](?=\d)|^[us](?=byte|short)", "", name)]
        column = -1 if pointer is None else pointer.column
        self.accesses.append(Access(store, column, size, column >= 0 and any(self.masks)))
        if not store:
            offset = re.search(r"offset:(-?\d+)", text)
            self._fill(_registers(operands[0]), pointer, int(offset[1]) if offset else 0)

    def _scalar_load(self, operands: list[str]) -> None:
        offset = constant(operands[2]) if len(operands) > 2 else 0
        self._fill(_registers(operands[0]), self._known(operands[1:2]), offset)

    def _fill(self, names: list[str], pointer: Pointer | None, offset: int | None) -> None:
        """Set the registers that were read from ``pointer``."""
        for i, name in enumerate(names):
            value = None
            if pointer is not None and offset is not None:
                value = pointer.read((offset + 4 * i) // 8 * 8)
            self._set(name, value)
            self.bounded.discard(name)
            if value and value.base == "numel":
                self.bounded.add(name)

    def _set(self, name: str, value: Pointer | None) -> None:
        if value is None:
            self.pointers.pop(name, None)
        else:
            self.pointers[name] = value

    def _compute(self, op: str, operands: list[str]) -> None:
        # the carry of an addition is a second result, not a source
        carry = operands[1:2] if "_co_" in op else []
        sources = operands[1 + len(carry) :]
        pointer = self._known(sources)
        if pointer is not None and op.startswith("s_add_u32"):
            step = next((c for c in map(constant, sources) if c is not None), 0)
            pointer = pointer._replace(offset=pointer.offset + step)
        bounded = any(n in self.bounded for operand in sources for n in _registers(operand))
        for name in (name for operand in carry for name in _registers(operand)):
            self._set(name, None)
        for name in _registers(operands[0]):
            self._set(name, pointer)
            (self.bounded.add if bounded else self.bounded.discard)(name)


class Amd:
    """The assembly of one kernel: see :class:`ci.codegen.ptx.Ptx`.

    Attributes:
        full: accesses of each path without a masked access of a column.
        lengths: number of instructions of each path in ``full``.
        masked: masked accesses of columns.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.full: list[list[Access]] = []
        self.lengths: list[int] = []
        self.masked: list[Access] = []
        for way in paths(blocks(_items(text)), lambda block: False):
            code = [step for block in way for step in block.code]
            flow = _Flow(_arguments(text))
            for step in code:
                flow.follow(step)
            columns = [access for access in flow.accesses if access.column >= 0]
            self.masked += [access for access in columns if access.masked]
            if columns and not any(access.masked for access in columns):
                self.full.append(flow.accesses)
                self.lengths.append(len(code))

    def number(self, key: str) -> int:
        """Return a number from the metadata of the kernel or the remarks of the compiler."""
        found = re.search(rf"^(?:\s*\.|; ){key}:\s+(\d+)", self.text, re.MULTILINE)
        assert found is not None, key
        return int(found[1])

    @property
    def inexact(self) -> list[str]:
        """Return counts of instructions that show a contracted or approximate operation."""
        # v_dual_* of GFX11 are two instructions of one line
        text = _ONE_ROUNDING.sub("", self.text)
        names = re.findall(r"\bv_(?:dual_|pk_)?((?:[a-z]+_)+[fb]\w*\d+)", text)
        names += re.findall(r"\bv_pk_(fma_f32)", text)  # which are two
        found = Counter(re.sub(r"_(e32|e64|dpp|sdwa)$", "", name) for name in names)
        wrong = [f"{name}: {n}" for name, n in found.items() if re.match("mad_|mac_|fma_mix", name)]
        for width in ("f32", "f64"):
            divisions = found[f"div_fixup_{width}"]
            roots = {name: found[f"{name}_{width}"] for name in _FMA_PER_ROOT[width]}
            fma = found[f"fma_{width}"] + found[f"fmac_{width}"]
            fma += found[f"fmaak_{width}"] + found[f"fmamk_{width}"]
            allowed = _FMA_PER_DIVISION[width] * divisions
            allowed += sum(n * _FMA_PER_ROOT[width][name] for name, n in roots.items())
            allowed += found[f"floor_{width}"] * _FMA_PER_FLOOR
            if fma != allowed or found[f"rcp_{width}"] != divisions:
                wrong.append(
                    f"{fma} fma and {found[f'rcp_{width}']} rcp of {width}, in {divisions} "
                    f"divisions and {sum(roots.values())} roots, which have {allowed} and "
                    f"{divisions}"
                )
        return wrong
