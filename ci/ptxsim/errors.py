"""Exceptions: faults of the program, and features that the interpreter does not have."""

from typing import NamedTuple


class Unsupported(Exception):
    """A feature of the program that the interpreter does not implement."""


class Place(NamedTuple):
    """The location of a fault; fields that are not known are None."""

    kernel: str
    line: int | None = None
    text: str = ""
    block: int | None = None
    thread: int | None = None
    address: int | None = None

    def __str__(self) -> str:
        parts = [f"kernel {self.kernel}"]
        if self.line is not None:
            parts.append(f"PTX line {self.line} ({self.text})")
        if self.block is not None:
            parts.append(f"block {self.block}, thread {self.thread}")
        if self.address is not None:
            parts.append(f"address {self.address:#x}")
        return ", ".join(parts)


class Fault(Exception):
    """An error or undefined behaviour on a GPU.

    Args:
        kind: description of the fault.
        place: location of the fault.
    """

    def __init__(self, kind: str, place: Place) -> None:
        super().__init__(f"{kind}: {place}")
        self.kind = kind
        self.place = place
