"""What can go wrong: the program, or this machine's knowledge of its instructions."""

from typing import NamedTuple


class Unsupported(Exception):
    """The program uses something this machine does not model; nothing is guessed."""


class Place(NamedTuple):
    """Where a program went wrong; what is not known is None."""

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
    """The program did what is an error, or left to chance, on a GPU.

    Args:
        kind: what happened.
        place: where it happened.
    """

    def __init__(self, kind: str, place: Place) -> None:
        super().__init__(f"{kind}: {place}")
        self.kind = kind
        self.place = place
