"""Reader of a cubin: the resources of the kernel, and its machine code (SASS)."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import triton

from ci.codegen.code import Access, Block, Instruction, blocks, paths

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?(U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_SIZE = re.compile(r"\.[US]?(8|16|64|128|256)\b")  # 32 bits are not written


class Resources(NamedTuple):
    """Resources of a kernel, by thread or block.

    Attributes:
        registers: 32-bit registers a thread.
        stack: bytes of the stack a thread, to which registers are spilled.
        local: bytes of local memory a thread.
        shared: bytes of shared memory of a block.
    """

    registers: int
    stack: int
    local: int
    shared: int


def _tool(name: str, cubin: bytes, *options: str) -> str:
    """Return the output of a tool of the CUDA toolkit, from Triton's wheel."""
    path = getattr(triton.knobs.nvidia, name).path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [path, *options, file.name]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@cache
def ptxas_version(blackwell: bool) -> str:
    """Return the version of ptxas; Blackwell has its own."""
    nvidia = triton.knobs.nvidia
    return str((nvidia.ptxas_blackwell if blackwell else nvidia.ptxas).version)


def resources(cubin: bytes) -> Resources:
    """Return the resources of the only kernel in a cubin."""
    text = _tool("cuobjdump", cubin, "--dump-resource-usage")
    found = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
    return Resources(found["REG"], found["STACK"], found["LOCAL"], found["SHARED"])


def listing(cubin: bytes) -> str:
    """Return the machine code of a cubin as text."""
    return _tool("nvdisasm", cubin, "--print-code")


def _items(text: str) -> Iterator[Instruction | str]:
    for line in text.splitlines():
        if label := _LABEL.match(line):
            yield label[1]
        elif found := _INSTRUCTION.match(line):
            guard, op, operands = found[1] or "", found[2], found[3]
            jumps = op.split(".")[0] in ("BRA", "BRX")
            label = re.search(r"\((\.L_x_\d+)\)", operands) if jumps else None
            ends = jumps or op.split(".")[0] in ("EXIT", "RET")
            yield Instruction(op, operands, guard, label[1] if label else "", ends)


def spills(text: str) -> int:
    """Return the number of accesses to local memory in a listing."""
    return len(re.findall(r"\b(?:LDL|STL)\b", text))


def accesses(way: list[Instruction]) -> list[Access]:
    """Return all accesses to global memory; predicated ones are masked."""
    found = []
    for step in way:
        if step.op.startswith(("LDG", "STG")):
            bits = _SIZE.search(step.op)
            size = int(bits[1]) // 8 if bits else 4
            found.append(Access(step.op.startswith("ST"), -1, size, bool(step.guard)))
    return found


def _calls(block: Block) -> bool:
    """Return True for the slow path of division and root: denormals, infinities and NaN."""
    return any(step.op.startswith("CALL") for step in block.code)


def full_path(text: str, expected: list[Access]) -> list[Instruction] | None:
    """Return the instructions executed for a full chunk of ordinary numbers.

    Args:
        text: the listing.
        expected: accesses of this path in PTX. They identify it: the stores are the same, and
            the loads of columns are among its loads.

    Returns:
        The instructions, or None if no path has these accesses: the assembler may replace paths
        by predicates, as in the loop of the norm.
    """
    stores = sorted(access.size for access in expected if access.store)
    loads = Counter(a.size for a in expected if a.column >= 0 and not a.store)
    found = []
    for way in paths(blocks(_items(text)), _calls):
        code = [step for block in way for step in block.code]
        passed = accesses(code)
        read = Counter(a.size for a in passed if not (a.store or a.masked))
        if stores == sorted(a.size for a in passed if a.store) and loads <= read:
            found.append(code)
    # special cases are computed inline on longer paths; ordinary numbers take the shortest
    return min(found, key=len, default=None)
