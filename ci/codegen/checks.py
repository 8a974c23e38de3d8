"""Checks of a compiled kernel; each returns a complaint, or an empty string.

The tests of the compiled code assert these for a covering set of rules, formats and targets, and
``python -m ci.codegen --all`` for all of them.
"""

from collections.abc import Callable

from ci.codegen.facts import Facts

# 32-bit registers of a thread. 128 are for rows of many columns (Adan's and the average of the
# parameter) and for float64 sums; 168 for rows that are not aligned: there each element has an
# address and, in the last chunk, a predicate of its own.
REGISTERS, REGISTERS_WIDE, REGISTERS_UNALIGNED, MANY_COLUMNS = 96, 128, 168, 7
# bytes of an access on full chunks, by the bytes of an element
NARROWEST = {8: 16, 4: 16, 2: 8, 1: 4}
WIDEST = 16  # the alignment hint asks for no more; a target may have wider accesses

Check = Callable[[Facts], str]


def has_both_paths(facts: Facts) -> str:
    """Require one path for full chunks, without a mask, and masked accesses elsewhere."""
    full = len(facts.ways)
    if full == 1 and facts.code.masked:
        return ""
    return f"{full} paths without a mask, and {'some' if facts.code.masked else 'no'} masked access"


def moves_each_column_once(facts: Facts) -> str:
    """Require that every column is read once and, except for the gradient, written once."""
    wrong = []
    for i, column in enumerate(facts.columns):
        loads, stores = facts.sizes(i, store=False), facts.sizes(i, store=True)
        once = facts.elements * column.size
        if column.block > 1:  # threads share the entry: not each of them writes one
            read, written = bool(loads), bool(stores) == column.written
        else:
            read, written = sum(loads) == once, sum(stores) == once * column.written
        needed = facts.name == "update" or loads  # others leave out what they do not need
        if needed and not read:
            wrong.append(f"column {i} read in {loads} bytes")
        if not written:
            wrong.append(f"column {i} written in {stores} bytes")
    return ", ".join(wrong)


def moves_the_floor(facts: Facts) -> str:
    """Require that the path of full chunks moves no more bytes than the format has."""
    if facts.bytes_per_element == facts.floor:
        return ""
    return f"{facts.bytes_per_element} bytes an element, and {facts.floor} are enough"


def is_wide(facts: Facts) -> str:
    """Require accesses of 128 bits for full chunks, or the width of a thread's elements."""
    narrow = []
    for access in facts.full:
        column = facts.columns[access.column]
        vector = min(facts.kind.vector, facts.elements)
        least = max(min(WIDEST, vector * column.size), NARROWEST[column.size])
        if column.block == 1 and access.size < least:
            narrow.append(f"column {access.column} in {access.size} bytes, not {least}")
    return ", ".join(sorted(set(narrow)))


def is_element_wise(facts: Facts) -> str:
    """Require that no access needs more than the alignment of an element."""
    wide = [
        f"column {access.column} in {access.size} bytes"
        for access in [*facts.full, *facts.code.masked]
        if access.size > facts.columns[access.column].size
    ]
    return ", ".join(sorted(set(wide)))


def stays_in_registers(facts: Facts) -> str:
    """Require no local memory and no spilled registers."""
    if facts.local == 0 and facts.spills == 0:
        return ""
    return f"{facts.local} bytes of local memory, {facts.spills} spilled"


def spills_little(facts: Facts) -> str:
    """Require at most 64 bytes of local memory, in a kernel that a step runs once for 128 rows."""
    return stays_in_registers(facts) if max(facts.local, facts.spills) > 64 else ""


def needs_no_shared_memory(facts: Facts) -> str:
    """Require that threads exchange nothing, because all columns have one layout."""
    if facts.shared == 0 or any(column.block > 1 for column in facts.columns):
        return ""
    return f"{facts.shared} bytes of shared memory"


def has_few_registers(facts: Facts) -> str:
    """Require at most 96 registers in the update of aligned rows, and more in other kernels."""
    wide = facts.name != "update" or len(facts.columns) >= MANY_COLUMNS
    # 128 of AMD's leave as many threads as 96 of NVIDIA's and more
    wide = wide or facts.target.startswith("gfx")
    bound = REGISTERS_WIDE if wide else REGISTERS
    if not facts.kind.aligned:
        bound = REGISTERS_UNALIGNED
    bound *= facts.kind.compute.itemsize // 4  # a number in float64 takes two
    return f"{facts.registers} registers, not {bound}" if facts.registers > bound else ""


def rounds_once(facts: Facts) -> str:
    """Require operations that round once: no contraction, no approximate division or root."""
    return "; ".join(facts.code.inexact[:3])


ALWAYS: tuple[Check, ...] = (rounds_once, stays_in_registers)
ELEMENTWISE: tuple[Check, ...] = (
    *ALWAYS,
    has_both_paths,
    moves_each_column_once,
    has_few_registers,
)
CHECKS: dict[tuple[str, bool], tuple[Check, ...]] = {
    ("update", True): (*ELEMENTWISE, needs_no_shared_memory, moves_the_floor, is_wide),
    ("update", False): (*ELEMENTWISE, needs_no_shared_memory, moves_the_floor, is_element_wise),
    # ptxas 12.8 spills 8 bytes of the float64 scalars of schedule-free SGD for sm_120
    ("prepare", True): (rounds_once, spills_little),
    ("prepare", False): (rounds_once, spills_little),
    ("reduce", True): (*ELEMENTWISE, is_wide),
    ("reduce", False): (*ELEMENTWISE, is_element_wise),
    ("norm", True): (*ELEMENTWISE, is_wide),
    ("norm", False): (*ELEMENTWISE, is_element_wise),
}


def complaints(facts: Facts) -> list[str]:
    """Return the complaints about a kernel, each with the name of its check."""
    found = {}
    for check in CHECKS.get((facts.name, facts.kind.aligned), ALWAYS):
        found[check] = check(facts)
        if check is has_both_paths and found[check]:
            break  # the other checks need the one path
    return [f"{check.__name__}: {complaint}" for check, complaint in found.items() if complaint]
