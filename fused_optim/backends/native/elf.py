"""The conversion of a relocatable ELF object to position-independent bytes, without a linker."""

import struct
from typing import NamedTuple

from fused_optim.backends.native.image import PAGE, Image

PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL = 1, 2, 3, 4, 8, 9
WRITE, ALLOC = 1, 2
# kinds of relocations by their numbers in the processor supplements of the ELF standard
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
RELOCATIONS = {62: X86_64, 183: AARCH64}  # by the field e_machine of the header


class Section(NamedTuple):
    """A section with the fields of its header.

    Attributes:
        name: name of the section.
        sort: type of the section: PROGBITS or another of the constants above.
        flags: bit set of WRITE, ALLOC and others.
        size: size in memory in bytes.
        data: contents in the object.
        link: index of an associated section.
        info: index of the section that relocations apply to.
        align: alignment of the address in bytes.
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
    """A symbol: a name for an offset in a section.

    Attributes:
        name: name of the symbol; "" for the beginning of a section.
        section: index of the section; 0 if the object does not define the symbol.
        value: offset in the section in bytes.
    """

    name: str
    section: int
    value: int


class NotIndependent(RuntimeError):
    """An error: code refers to a symbol outside of itself."""


def make_image(elf: bytes, name: str) -> Image:
    """Return the code and constants of an object as an image.

    Args:
        elf: 64-bit little-endian relocatable object.
        name: name of the entry function.

    Raises:
        NotIndependent: the code refers to a symbol that the object does not define, has writable
            data, or contains an absolute address.
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
        entries = struct.iter_unpack("<IBBHQQ", table.data)
        return [Symbol(_string(names, s[0]), s[3], s[4]) for s in entries]

    def image(self, name: str) -> Image:
        """Return the image with the entry function ``name``; see :func:`make_image`."""
        offsets, code = self._lay_out()
        for section in self.sections:
            if section.sort in (RELA, REL) and section.info in offsets:
                self._relocate(section, offsets, code)
        entry = next((s for s in self.symbols if s.name == name and s.section in offsets), None)
        if entry is None:
            raise NotIndependent(f"no function {name} in the object")
        return Image(bytes(code), offsets[entry.section] + entry.value)

    def _lay_out(self) -> tuple[dict[int, int], bytearray]:
        """Return the offset of each section needed at run time, and their concatenation."""
        offsets, code = {}, bytearray()
        for i, section in enumerate(self.sections):
            # .eh_frame has tables for exceptions, which the code never throws
            if not section.flags & ALLOC or section.name == ".eh_frame":
                continue
            if section.flags & WRITE:
                if section.size:
                    raise NotIndependent(f"the code has a section {section.name} to write to")
                continue
            if section.align > PAGE:
                raise NotIndependent(f"section {section.name} is aligned to {section.align} bytes")
            code += bytes(-len(code) % max(section.align, 1))
            offsets[i] = len(code)
            code += section.data
        return offsets, code

    def _relocate(self, table: Section, offsets: dict[int, int], code: bytearray) -> None:
        """Apply the relocations of one section to the code."""
        if table.sort == REL:
            raise NotIndependent(f"{table.name}: relocations without addends")
        for offset, info, addend in struct.iter_unpack("<QQq", table.data):
            symbol, sort = self.symbols[info >> 32], info & 0xFFFFFFFF
            if symbol.section not in offsets:
                raise NotIndependent(
                    f"the code calls or reads {symbol.name or 'another section'}, "
                    "which is not a part of it"
                )
            kind = RELOCATIONS.get(self.machine, {}).get(sort)
            if kind is None:
                raise NotIndependent(
                    f"relocation {sort} of machine {self.machine} against {symbol.name}: "
                    "the code would depend on where it is"
                )
            target = offsets[symbol.section] + symbol.value + addend
            _write(code, offsets[table.info] + offset, target, kind)


def _write(code: bytearray, offset: int, target: int, kind: str) -> None:
    """Write the relocation at ``offset`` to ``target``, both in bytes from the beginning."""
    distance = target - offset
    if kind == "PC32":
        struct.pack_into("<i", code, offset, distance)
        return
    (word,) = struct.unpack_from("<I", code, offset)
    if kind == "PAGE":
        pages = (target // 4096 - offset // 4096) & 0x1FFFFF
        word |= (pages & 3) << 29 | pages >> 2 << 5
    elif kind == "JUMP":
        word |= distance >> 2 & 0x3FFFFFF
    else:
        word |= (target % 4096 >> int(kind.removeprefix("LOW"))) << 10
    struct.pack_into("<I", code, offset, word)


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
