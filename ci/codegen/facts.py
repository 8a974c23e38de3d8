"""The static facts of one compiled kernel of any target."""

from functools import cached_property
from typing import Any, NamedTuple

from ci.codegen import devices, sass
from ci.codegen.amd import Amd
from ci.codegen.code import Access
from ci.codegen.ptx import Ptx
from fused_optim.backends.base import BucketKey
from fused_optim.backends.triton import GEOMETRY


class Column(NamedTuple):
    """A column of a storage format.

    Attributes:
        size: bytes of an entry.
        block: elements that share an entry.
        written: True if an update writes it; the gradient is only read.
    """

    size: int
    block: int
    written: bool


def columns(kind: BucketKey, name: str) -> list[Column]:
    """Return the columns of every value, in the order of the table of addresses."""
    gradient = range(kind.first[1], kind.first[2])
    return [
        Column(dtype.itemsize, block, name == "update" and i not in gradient)
        for i, (dtype, block) in enumerate(zip(kind.dtypes, kind.blocks, strict=True))
    ]


class Facts:
    """Facts of one compiled kernel.

    Attributes:
        kernel: the compiled kernel.
        name: name of the kernel.
        target: name of the target.
        kind: kind of the rows.
        columns: columns of the rows.
        threads: threads of a program.
        elements: elements of a chunk that each thread processes.
    """

    def __init__(self, kernel: Any, name: str, target: str, kind: BucketKey) -> None:
        self.kernel = kernel
        self.name = name
        self.target = target
        self.kind = kind
        self.columns = columns(kind, name)
        self.threads: int = kernel.metadata.num_warps * kernel.metadata.target.warp_size
        self.elements: int = GEOMETRY.block // self.threads

    @property
    def floor(self) -> float:
        """Return the least bytes per element of an update, or the bytes moved by another kernel.

        ``fused_optim.memory`` reports the same number, so the checks cover its forecast too.
        """
        if self.name == "update":
            return self.kind.bytes_moved
        return self.bytes_per_element

    @cached_property
    def code(self) -> Ptx | Amd:
        """Return the reader of the PTX or AMD assembly that Triton wrote."""
        asm = self.kernel.asm
        return Amd(asm["amdgcn"]) if "amdgcn" in asm else Ptx(asm["ptx"])

    @cached_property
    def _resources(self) -> sass.Resources:
        if not isinstance(self.code, Amd):
            return sass.resources(self.kernel.asm["cubin"])
        private = self.code.number("private_segment_fixed_size")
        shared = self.code.number("group_segment_fixed_size")
        return sass.Resources(self.code.number("vgpr_count"), private, 0, shared)

    @property
    def registers(self) -> int:
        """Return the registers of a thread: vector registers on AMD."""
        return self._resources.registers

    @property
    def local(self) -> int:
        """Return bytes of local (AMD: private) memory per thread, spilled registers included."""
        return self._resources.stack + self._resources.local

    @property
    def spills(self) -> int:
        """Return spilled registers; for NVIDIA bytes of stack, as their number is not reported."""
        if not isinstance(self.code, Amd):
            return self._resources.stack
        return self.code.number("vgpr_spill_count") + self.code.number("sgpr_spill_count")

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory of a program."""
        return self._resources.shared

    @cached_property
    def ways(self) -> list[list[Access]]:
        """Return the distinct lists of accesses to columns on the paths of full chunks."""
        columns = (tuple(access for access in way if access.column >= 0) for way in self.code.full)
        return [list(way) for way in dict.fromkeys(columns)]

    @property
    def full(self) -> list[Access]:
        """Return the accesses to columns on the path of full chunks.

        Raises:
            ValueError: there is no such path, or more than one.
        """
        if len(self.ways) != 1:
            raise ValueError(f"{len(self.ways)} paths access columns without a mask, and not one")
        return self.ways[0]

    def sizes(self, column: int, store: bool) -> list[int]:
        """Return the bytes of each access of one column."""
        return [a.size for a in self.full if a.column == column and a.store == store]

    @property
    def bytes_per_element(self) -> float:
        """Return the bytes per element that the path of full chunks moves.

        An entry that several elements share counts once: the threads read it in one transaction.
        """
        total = 0.0
        for i, column in enumerate(self.columns):
            for store in (False, True):
                if column.block == 1:
                    total += sum(self.sizes(i, store)) / self.elements
                elif self.sizes(i, store):
                    total += column.size / column.block
        return total

    @cached_property
    def instructions_per_element(self) -> float | None:
        """Return machine instructions per element of full chunks, without the slow division."""
        if isinstance(self.code, Amd):
            return min(self.code.lengths) / self.elements
        text = sass.listing(self.kernel.asm["cubin"])
        way = sass.full_path(text, self.code.full[0])
        return None if way is None else len(way) / self.elements

    @property
    def occupancy(self) -> float:
        """Return resident warps or waves as a fraction of the most that fit."""
        if isinstance(self.code, Amd):
            return self.code.number("Occupancy") / devices.WAVES[self.target]
        return devices.occupancy(self.target, self.registers, self.shared, self.threads)
