"""Base classes of Triton's drivers and launchers on a stub of the vendor's library."""

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime.cache import get_cache_manager

from ci.ptxsim.state import every_block

from .library import Library, RawLaunch, build


class BadLaunch(Exception):
    """An error of a launch that does not match its kernel, device or stream."""


class Kernel(NamedTuple):
    """A compiled and loaded kernel, before its launch.

    Attributes:
        target: ``"cuda"`` or ``"hip"``.
        name: name of the function in the binary.
        threads: threads of a block.
        shared: bytes of shared memory.
        assembly: PTX or AMD assembly of the binary.
        widths: bytes of each parameter.
    """

    target: str
    name: str
    threads: int
    shared: int
    assembly: str
    widths: tuple[int, ...]


class Argument(NamedTuple):
    """An argument of Triton's launcher: name, Triton's name of the type, value."""

    name: str
    type: str
    value: Any


class Launch(NamedTuple):
    """A launch as the stub library received it.

    Attributes:
        kernel: kernel of the function handle.
        device: number of the current device.
        stream: handle of the stream.
        grid: blocks along each axis.
        block: threads along each axis.
        shared: bytes of shared memory.
        parameters: packed bytes of each parameter.
        arguments: arguments of the kernel without compile-time constants. The parameters have
            one or two pointers to scratch memory after them.
    """

    kernel: Kernel
    device: int
    stream: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    parameters: tuple[bytes, ...]
    arguments: tuple[Argument, ...]


def _arguments(name: str, kind: Any, value: Any) -> Iterator[Argument]:
    """Return the arguments of a parameter: one, one per tuple element, or none for a constexpr."""
    if isinstance(kind, tuple):
        for inner in zip(kind, value, strict=True):
            yield from _arguments(name, *inner)
    elif kind != "constexpr":
        yield Argument(name, kind, value)


def cached(source: Any, metadata: Any, suffix: str) -> bytes:
    """Read a file of a kernel from Triton's cache.

    Raises:
        RuntimeError: the file is not in the cache.
    """
    path = get_cache_manager(metadata.hash).get_file(f"{source.name[:150]}.{suffix}")
    if path is None:
        raise RuntimeError(f"Triton did not keep the {suffix} of {metadata.name}")
    return Path(path).read_bytes()


class _Utils:
    """Triton's utilities, which also record the kernel of each function handle."""

    def __init__(self, utils: Any, library: Library) -> None:
        self._utils, self._library = utils, library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._utils, name)

    def load_binary(self, name: str, binary: bytes, *rest: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._utils.load_binary(name, binary, *rest)
        self._library.functions[found[1]] = self._library.kernels[binary]
        return found


class Launcher:
    """A mix-in for Triton's launcher, which records its kernel and its arguments."""

    binary: str  # the suffixes of Triton's files
    assembly: str

    def __init__(self, source: Any, metadata: Any) -> None:
        super().__init__(source, metadata)
        driver = triton.runtime.driver.active
        self._signature = source.signature
        text = cached(source, metadata, self.assembly).decode()
        target = driver.get_current_target()
        driver.library.kernels[cached(source, metadata, self.binary)] = Kernel(
            target.backend,
            metadata.name,
            target.warp_size * metadata.num_warps,
            metadata.shared,
            text,
            driver.widths_of(text),
        )

    def __call__(self, *args: Any) -> None:
        """Launch the kernel.

        Raises:
            RuntimeError: Triton's error of a failed launch; its cause is the stub's error.
        """
        driver = triton.runtime.driver.active
        # the values before the kernel's arguments differ from version to version
        values = zip(self._signature.items(), args[-len(self._signature) :], strict=True)
        driver.arguments = tuple(
            argument for (name, kind), value in values for argument in _arguments(name, kind, value)
        )
        driver.library.error = None
        try:
            super().__call__(*args)
        except (RuntimeError, SystemError) as error:
            if driver.library.error is None:
                raise
            # AMD's launcher calls a hook before it checks for a failed launch: a SystemError
            reported = error.__cause__ if isinstance(error, SystemError) else error
            raise reported from driver.library.error


class StubDriver:
    """A mix-in for Triton's driver of a vendor, whose C code calls a stub library.

    As a context manager it is Triton's active driver; the previous one is restored at the end.

    Attributes:
        library: the stub library.
        devices: numbers of its devices.
        streams: handle of the current stream by device; 0 is the default stream.
        launches: launches that were received, in order.
        change: function that replaces a received launch, for tests of the checks.
        blocks: function that takes a kernel's name and a number of blocks, and returns the
            numbers of the blocks to execute.
        arguments: last arguments of Triton's launcher, see Launch.
        torch_type: type of the torch devices that the driver reports.
        executes: True if kernels are executed, False if launches are only recorded.
    """

    # a vendor's class has these, and widths_of(assembly) and execute(launch)
    library: Library
    devices: tuple[int, ...]
    executes: bool

    def __init__(self) -> None:
        super().__init__()
        self.utils = _Utils(self.utils, self.library)
        self.streams = dict.fromkeys(self.devices, 0)
        self.launches: list[Launch] = []
        self.change: Callable[[Launch], Launch] | None = None
        self.blocks: Callable[[str, int], Iterable[int]] = every_block
        self.arguments: tuple[Argument, ...] = ()
        self.torch_type = "cpu"
        self.get_current_device = self._current
        self.set_current_device = self._set_current
        self.get_current_stream = self.streams.__getitem__
        self._made = 0

    def __enter__(self) -> Any:
        self._before = dict(vars(triton.runtime.driver)), self.library.device
        self.library.device = self.devices[0]
        triton.runtime.driver.set_active(self)
        return self

    def __exit__(self, *exception: object) -> None:
        # the attributes of Triton's driver configuration differ by version; some are created lazily
        before, self.library.device = self._before
        vars(triton.runtime.driver).update(before)

    def _current(self) -> int:
        if self.library.device is None:
            raise RuntimeError("no device is current: the driver is used outside its context")
        return self.library.device

    def _set_current(self, device: int) -> None:
        if device not in self.devices:
            raise ValueError(f"device must be one of {self.devices}, got {device}")
        self.library.device = device

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Return a context in which ``device`` is the current device."""
        before = self._current()
        self._set_current(device)
        try:
            yield
        finally:
            self._set_current(before)

    def new_stream(self, device: int) -> int:
        """Return the handle of a new stream of ``device``."""
        self._made += 1
        return (device + 1) << 40 | self._made

    def get_active_torch_device(self) -> torch.device:
        """Return the CPU, or the current device while CPU tensors report one."""
        if self.torch_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.torch_type, self._current())

    @classmethod
    def is_active(cls) -> bool:
        """Return False, so that Triton never selects this driver itself."""
        return False

    def receive(self, raw: RawLaunch) -> None:
        """Check a launch, record it and execute it.

        Raises:
            BadLaunch: the launch does not match its kernel, the current device or its stream.
        """
        kernel = self.library.functions.get(raw.function)
        if kernel is None:
            raise BadLaunch(f"no function has the handle {raw.function:#x}")
        wanted, packed = len(kernel.widths), len(self.arguments)
        if not packed <= wanted <= packed + 2:  # more would be read past the packed ones
            raise BadLaunch(f"{kernel.name}: {packed} arguments and {wanted} parameters")
        sizes = enumerate(kernel.widths)
        parameters = tuple(ctypes.string_at(raw.parameters[i], size) for i, size in sizes)
        launch = Launch(
            kernel,
            raw.current_device,
            raw.stream,
            tuple(raw.grid),
            tuple(raw.block),
            raw.shared,
            parameters,
            self.arguments,
        )
        launch = launch if self.change is None else self.change(launch)
        self._check(launch, raw)
        self.launches.append(launch)
        self.execute(launch)

    def _check(self, launch: Launch, raw: RawLaunch) -> None:
        kernel = launch.kernel
        wanted: Sequence[tuple[str, Any, Any]] = (
            ("device", launch.device, raw.function_device),
            ("stream", launch.stream, self.streams.get(launch.device)),
            ("block", launch.block, (kernel.threads, 1, 1)),
            ("shared memory", launch.shared, kernel.shared),
            ("number of launch attributes", raw.attributes, 0),
            ("widths", tuple(map(len, launch.parameters)), kernel.widths),
        )
        for what, found, expected in wanted:
            if found != expected:
                raise BadLaunch(f"{kernel.name}: {what} is {found} and should be {expected}")
        if not all(launch.grid):
            raise BadLaunch(f"{kernel.name}: the grid {launch.grid} is empty")


def require_compilation() -> None:
    """Raise RuntimeError if Triton interprets kernels instead of compiling them."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")


@cache
def load_library(
    vendor: ModuleType, source: str, soname: str, other: str, **macros: int | str
) -> Library:
    """Compile and load a stub library, once a process; see :func:`ci.driver_stubs.library.build`.

    Args:
        vendor: Triton's backend, whose folder has the vendor's headers.
        source: name of the C file in this folder.
        soname: name of the vendor's library.
        other: second name of the file, by which Triton looks it up.
        macros: constants of the C file.

    Raises:
        RuntimeError: the library cannot be compiled, or the vendor's is loaded in this process.
    """
    include = Path(vendor.__path__[0]) / "include"
    return Library(build(source, soname, other, include, **macros), receive)


def receive(raw: RawLaunch) -> None:
    """Pass a launch to the active driver."""
    triton.runtime.driver.active.receive(raw)
