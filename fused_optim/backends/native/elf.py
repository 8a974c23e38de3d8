"""A relocatable ELF object as an image: bytes that run wherever they are put, without a linker."""

import struct
from typing import NamedTuple

from fused_optim.backends.native.image import PAGE, Image

PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL = 1, 2, 3, 4, 8, 9
WRITE, ALLOC = 1, 2
# how far instructions reach, as the processor supplements of the ELF standard number them
X86_64 = {2: "PC32", 4: "PC32"}  # R_X86_64_PC32, R_X86_64_PLT32
AARCH64 = {
    261: "PC32",  # R_AARCH64_PREL32
    275: "PAGE",  # R_AARCH64_ADR_PREL_PG_HI21
    277: "LOW0",  # R_AARCH64_ADD_ABS_LO12_NC
    278: "LOW0",  # R_AARCH64_LDST8_ABS_LO12_NC
    284: "LOW1",  # R_AARCH64_LDST16_ABS_LO12_NC
    285: "LOW2",
    286: "LOW3",
    299: "LOW4",  # R_AARCH64_LDST128_ABS_LO12_NC
    282: "JUMP",  # R_AARCH64_JUMP26
    283: "JUMP",  # R_AARCH64_CALL26
}
RELOCATIONS = {62: X86_64, 183: AARCH64}  # by the machine in the header


class Section(NamedTuple):
    """A header of a section.

    Attributes:
        name: of the section.
        sort: PROGBITS or another of the numbers above.
        flags: WRITE, ALLOC and others.
        size: in memory.
        data: its bytes in the object.
        link: the number of another section that this one needs.
        info: the number of the section that relocations are for.
        align: of its address.
    """

    name: str
    sort: int
    flags: int
    size: int
    data: bytes
    link: int
    info: int
    align: int


class Symbol(NamedTuple):
    """A name for a place.

    Attributes:
        name: "" for the beginning of a section.
        section: its number; 0 for what the object does not define.
        value: the place in the section.
    """

    name: str
    section: int
    value: int


class NotIndependent(RuntimeError):
    """Code that needs something outside of itself, by name."""


def make_image(elf: bytes, name: str) -> Image:
    """Cut the code and constants of an object out of it, in one piece.

    Args:
        elf: a relocatable object of 64 bits, little endian.
        name: of the function to enter at.

    Raises:
        NotIndependent: the code calls something that the object does not define, writes to data of
            its own, or has an address in it.
    """
    return _Object(elf).image(name)


class _Object:
    """The sections and symbols of an object."""

    def __init__(self, elf: bytes) -> None:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise NotIndependent("no ELF object of 64 bits, little endian")
        self.machine, _, _, _, at, _, _, _, _, size, count, names = struct.unpack_from(
            "<HIQQQIHHHHHH", elf, 18
        )
        headers = [struct.unpack_from("<IIQQQQIIQQ", elf, at + i * size) for i in range(count)]
        bodies = [b"" if h[1] == NOBITS else elf[h[4] : h[4] + h[5]] for h in headers]
        self.sections = [
            Section(_string(bodies[names], h[0]), h[1], h[2], h[5], body, h[6], h[7], h[8])
            for h, body in zip(headers, bodies, strict=True)
        ]
        self.symbols = [
            s for part in self.sections if part.sort == SYMTAB for s in self._read(part)
        ]

    def _read(self, table: Section) -> list[Symbol]:
        names = self.sections[table.link].data
        found = struct.iter_unpack("<IBBHQQ", table.data)
        return [Symbol(_string(names, s[0]), s[3], s[4]) for s in found]

    def image(self, name: str) -> Image:
        """See :func:`make_image`."""
        places, code = self._place()
        for section in self.sections:
            if section.sort in (RELA, REL) and section.info in places:
                self._relocate(section, places, code)
        entry = next((s for s in self.symbols if s.name == name and s.section in places), None)
        if entry is None:
            raise NotIndependent(f"no function {name} in the object")
        return Image(bytes(code), places[entry.section] + entry.value)

    def _place(self) -> tuple[dict[int, int], bytearray]:
        """Return where each section needed at run time begins, and all of them in one piece."""
        places, code = {}, bytearray()
        for i, section in enumerate(self.sections):
            # tables for exceptions are of no use: nothing is thrown
            if not section.flags & ALLOC or section.name == ".eh_frame":
                continue
            if section.flags & WRITE:
                if section.size:
                    raise NotIndependent(f"the code has a section {section.name} to write to")
                continue
            if section.align > PAGE:
                raise NotIndependent(f"section {section.name} is aligned to {section.align} bytes")
            code += bytes(-len(code) % max(section.align, 1))
            places[i] = len(code)
            code += section.data
        return places, code

    def _relocate(self, table: Section, places: dict[int, int], code: bytearray) -> None:
        """Put the distances to other places into the code of one section."""
        if table.sort == REL:
            raise NotIndependent(f"{table.name}: relocations without addends")
        for offset, info, addend in struct.iter_unpack("<QQq", table.data):
            symbol, sort = self.symbols[info >> 32], info & 0xFFFFFFFF
            if symbol.section not in places:
                raise NotIndependent(
                    f"the code calls or reads {symbol.name or 'another section'}, "
                    "which is not a part of it"
                )
            way = RELOCATIONS.get(self.machine, {}).get(sort)
            if way is None:
                raise NotIndependent(
                    f"relocation {sort} of machine {self.machine} against {symbol.name}: "
                    "the code would depend on where it is"
                )
            target = places[symbol.section] + symbol.value + addend
            _write(code, places[table.info] + offset, target, way)


def _write(code: bytearray, place: int, target: int, way: str) -> None:
    """Write the way from ``place`` to ``target``, both in bytes from the page-aligned beginning."""
    distance = target - place
    if way == "PC32":
        struct.pack_into("<i", code, place, distance)
        return
    (word,) = struct.unpack_from("<I", code, place)
    if way == "PAGE":
        pages = (target // 4096 - place // 4096) & 0x1FFFFF
        word |= (pages & 3) << 29 | pages >> 2 << 5
    elif way == "JUMP":
        word |= distance >> 2 & 0x3FFFFFF
    else:
        word |= (target % 4096 >> int(way.removeprefix("LOW"))) << 10
    struct.pack_into("<I", code, place, word)


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
