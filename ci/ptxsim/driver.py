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

# memory that a kernel may ask for beside shared memory; those that a version of Triton has are
# pointers after the arguments of every kernel
_SCRATCH = ("global_scratch_size", "profile_scratch_size")
# bytes of shared memory that one block can have
_SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


class Launched(NamedTuple):
    """A launch that was made."""

    name: str
    grid: tuple[int, int, int]


def _flat(types: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The types and values of a kernel's arguments, without tuples and compile-time constants."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bits(kind: str, value: Any) -> int:
    """The bits of an argument of this Triton type."""
    if kind.startswith("*"):
        return value.data_ptr() if hasattr(value, "data_ptr") else int(value or 0)
    if kind in ("fp32", "fp64"):
        size = int(kind[2:]) // 8
        return int(np.array(value, f"f{size}").view(f"u{size}"))
    if kind[0] in "iu":
        return int(value)
    raise Unsupported(f"argument of type {kind}")


class _Launcher:
    """Runs one compiled kernel; Triton makes and calls it."""

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
        # before the kernel's arguments: stream, function, two kinds of metadata, two hooks
        arguments = [_bits(kind, value) for kind, value in _flat(self._types, rest[6:])]
        driver = triton.runtime.driver.active
        driver.launch(self._ptx, (width, height, depth), self._metadata, arguments)


class _Utils:
    """What Triton asks of a driver's native half."""

    def __init__(self, properties: Mapping[str, int]) -> None:
        self._properties = properties

    def get_device_properties(self, device: int) -> Mapping[str, int]:
        return self._properties

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spills and the most threads a block can have."""
        return self, self, 0, 0, 1024


class PtxDriver(DriverBase):
    """A Triton driver that runs kernels on the CPU tensors they are given.

    As a context manager it gives way to the driver that was active before.

    Attributes:
        launches: the launches so far.
        inexact: by kernel, the instructions it has whose results on a GPU may be others.
        options: how to run launches; may be replaced.

    Args:
        arch: the compute capability to compile for, such as 90.
        multiprocessors: how many the device says it has.
        ranges: addresses and sizes of memory, other than that of tensors, that kernels may touch.
        options: the fields of Options.
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
        # nothing uses them here: see _Launcher
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
        """Never chosen by Triton itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """There is no C++ here."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """The GPU to compile for."""
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        """The architecture: Triton keeps the kernels it has compiled by device."""
        return self._arch

    def set_current_device(self, device: int) -> None:
        """There is one device."""

    def get_current_stream(self, device: int) -> int:
        """There is one stream, and every launch has run when it returns."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """CPU tensors are device memory."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Refused: nothing can be timed here."""
        raise Unsupported("timing")


def install(arch: int = 90, **options: Any) -> PtxDriver:
    """Let Triton compile for sm_<arch>, and run what it compiles on CPU tensors.

    Args:
        arch: the compute capability to compile for.
        options: the other arguments of PtxDriver.

    Returns:
        The driver; ``with install(90) as driver:`` brings the driver before it back in the end.

    Raises:
        RuntimeError: Triton interprets kernels instead of compiling them (TRITON_INTERPRET).
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")
    driver = PtxDriver(arch, **options)
    driver.activate()
    return driver
