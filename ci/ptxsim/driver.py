"""A Triton driver without a GPU: ``kernel[grid](tensor, ...)`` compiles as usual and runs here."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.cache import get_cache_manager

from .errors import Unsupported
from .machine import run
from .memory import Memory
from .state import Options
from .tensors import LiveTensors

# scratch memory of a kernel: each of these that the version of Triton has is a pointer after the
# arguments of every kernel
_SCRATCH = ("global_scratch_size", "profile_scratch_size")
# bytes of shared memory that one block can have
_SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


class Launched(NamedTuple):
    """The name and the grid of a launch."""

    name: str
    grid: tuple[int, int, int]


def _flat(types: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield types and values of a kernel's arguments, without tuples and compile-time constants."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bits(kind: str, value: Any) -> int:
    """Return the bits of an argument of this Triton type as an integer."""
    if kind.startswith("*"):
        return value.data_ptr() if hasattr(value, "data_ptr") else int(value or 0)
    if kind in ("fp32", "fp64"):
        size = int(kind[2:]) // 8
        return int(np.array(value, f"f{size}").view(f"u{size}"))
    if kind[0] in "iu":
        return int(value)
    raise Unsupported(f"argument of type {kind}")


class _Launcher:
    """The launcher of one compiled kernel, which Triton creates and calls."""

    def __init__(self, source: Any, metadata: Any) -> None:
        for feature in (*_SCRATCH, "tmem_size"):
            if getattr(metadata, feature, 0):
                raise Unsupported(f"{metadata.name}: {feature}")
        if getattr(metadata, "num_ctas", 1) != 1:
            raise Unsupported(f"{metadata.name}: clusters of blocks")
        self._types, self._metadata = tuple(source.signature.values()), metadata
        path = get_cache_manager(metadata.hash).get_file(f"{source.name[:150]}.ptx")
        if path is None:
            raise Unsupported(f"{metadata.name}: Triton did not keep the PTX")
        self._ptx = Path(path).read_text()

    def __call__(self, width: int, height: int, depth: int, *rest: Any) -> None:
        # six values precede the kernel's arguments: stream, function, metadata (2), hooks (2)
        arguments = [_bits(kind, value) for kind, value in _flat(self._types, rest[6:])]
        driver = triton.runtime.driver.active
        driver.launch(self._ptx, (width, height, depth), self._metadata, arguments)


class _Utils:
    """The functions that Triton expects of a driver's C module."""

    def __init__(self, properties: Mapping[str, int]) -> None:
        self._properties = properties

    def get_device_properties(self, device: int) -> Mapping[str, int]:
        return self._properties

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Return module, function, registers, spills and the most threads of a block."""
        return self, self, 0, 0, 1024


class PtxDriver(DriverBase):
    """A Triton driver that runs kernels on the CPU tensors they are given.

    As a context manager it restores the previously active driver at the end.

    Attributes:
        launches: launches so far, in order.
        inexact: by kernel, the instructions whose results on a GPU may differ.
        options: options of the launches; may be replaced.

    Args:
        arch: compute capability to compile for, such as 90.
        multiprocessors: number of multiprocessors that the device reports.
        ranges: addresses and sizes of memory, other than that of tensors, that kernels may access.
        options: fields of Options.
    """

    launcher_cls = _Launcher

    def __init__(
        self,
        arch: int = 90,
        multiprocessors: int = 132,
        ranges: Iterable[tuple[int, int]] = (),
        **options: Any,
    ) -> None:
        if arch not in _SHARED:
            raise ValueError(f"arch must be one of {sorted(_SHARED)}, got {arch}")
        self._arch, self._ranges, self._tensors = arch, tuple(ranges), LiveTensors()
        self.options = Options(**options)
        self.launches: list[Launched] = []
        self.inexact: dict[str, frozenset[str]] = {}
        self.utils = _Utils(
            {
                "max_shared_mem": _SHARED[arch] * 1024,
                "max_num_regs": 65536,
                "multiprocessor_count": multiprocessors,
                "warpSize": 32,
            }
        )
        self._before: dict[str, Any] = {}

    def launch(
        self, ptx: str, grid: tuple[int, int, int], metadata: Any, values: list[int]
    ) -> None:
        """Run a launch, unless its grid is empty."""
        if 0 in grid:
            return
        self.launches.append(Launched(metadata.name, grid))
        tensors, ranges = self._tensors, self._ranges
        memory = Memory([*tensors.recent(), *ranges], lambda: [*tensors.every(), *ranges])
        # null pointers: _Launcher refuses kernels that use scratch memory
        values = [*values, *(0 for size in _SCRATCH if hasattr(metadata, size))]
        threads = 32 * metadata.num_warps
        program = run(ptx, grid, threads, values, memory, metadata.shared, self.options)
        known = self.inexact.get(metadata.name, frozenset())
        self.inexact[metadata.name] = known | program.inexact

    def activate(self) -> None:
        """Become Triton's driver."""
        config = triton.runtime.driver
        # the attribute that holds the active driver differs by version; to read the property
        # "active" would make Triton look for a GPU
        self._before = dict(vars(config))
        config.set_active(self)

    def __enter__(self) -> "PtxDriver":
        return self

    def __exit__(self, *exception: object) -> None:
        vars(triton.runtime.driver).update(self._before)

    @classmethod
    def is_active(cls) -> bool:
        """Return False, so that Triton never selects this driver itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the type unchanged: no C++ is generated."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """Return the GPU to compile for."""
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        """Return the architecture, because Triton caches compiled kernels by device."""
        return self._arch

    def set_current_device(self, device: int) -> None:
        """Do nothing: there is one device."""

    def get_current_stream(self, device: int) -> int:
        """Return the only stream; every launch has run when it returns."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return the CPU, whose tensors are device memory."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Raise Unsupported: times of the interpreter mean nothing."""
        raise Unsupported("timing")


def install(arch: int = 90, **options: Any) -> PtxDriver:
    """Make Triton compile for sm_<arch> and run the kernels on CPU tensors.

    Args:
        arch: compute capability to compile for.
        options: other arguments of PtxDriver.

    Returns:
        The driver; ``with install(90) as driver:`` restores the previous driver at the end.

    Raises:
        RuntimeError: Triton interprets kernels instead of compiling them (TRITON_INTERPRET).
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")
    driver = PtxDriver(arch, **options)
    driver.activate()
    return driver
