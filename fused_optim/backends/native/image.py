"""The loading of machine code into executable memory, without triton or llvmlite."""

import ctypes
import mmap
import os
import struct
from typing import NamedTuple

PAGE = 4096  # alignment in bytes of the address of an image
ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Image(NamedTuple):
    """Machine code that runs at any address that is a multiple of PAGE.

    Attributes:
        code: instructions and constants.
        entry: offset of the function in ``code`` in bytes.
    """

    code: bytes
    entry: int

    def pack(self) -> bytes:
        """Return the image as bytes, for :meth:`unpack`."""
        return struct.pack("<Q", self.entry) + self.code

    @classmethod
    def unpack(cls, data: bytes) -> "Image":
        """Return the image from the bytes of :meth:`pack`."""
        return cls(data[8:], *struct.unpack_from("<Q", data))


class Kernel:
    """An image in executable memory, which is freed with this object.

    Calling it with the address of the launch words runs it; ctypes releases the GIL meanwhile.

    Attributes:
        address: address of the function.

    Raises:
        RuntimeError: the system forbids executable memory.
    """

    def __init__(self, image: Image) -> None:
        self._memory = mmap.mmap(-1, len(image.code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(image.code)
        # ctypes gives the address of a buffer only, which must be deleted to free the memory
        buffer = ctypes.c_char.from_buffer(self._memory)
        start = ctypes.addressof(buffer)
        del buffer
        _protect(start, len(image.code))
        self.address = start + image.entry
        self._function = ENTRY(self.address)

    def __call__(self, launch: int) -> None:
        """Run the function on the launch words at the address ``launch``."""
        self._function(launch)


def _protect(start: int, size: int) -> None:
    """Make memory executable and read-only."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(start, size, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise RuntimeError(
            "backend='native' needs memory that can be executed, which the system does not allow: "
            f"mprotect says {os.strerror(ctypes.get_errno())!r}"
        )
