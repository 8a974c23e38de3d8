"""The Triton backend: all rows of one kind in one launch each of norm, begin and update."""

import contextlib
import importlib
import math
from collections.abc import Callable
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_optim.backends import COMMON_OPTIONS, HEAD, Bucket, Kind, Options, Scaler
from fused_optim.kernels import begin as begin_page
from fused_optim.kernels import measure, norm, update

BLOCK = 1024  # elements a program updates
SPAN = 64  # chunks that share an entry of the chunk map
ROWS = 128  # rows a program of begin prepares
MAX_PARTIALS = 1024  # programs of norm: enough for any device, and one block for begin
DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int16: tl.int16,
}
# one rounding an operation, as the reference has it
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


class Target(Protocol):
    """What is compiled for; ``triton.backends.compiler.GPUTarget`` is one."""

    backend: str
    warp_size: int


class NoTarget:
    """The interpreter's: nothing depends on it."""

    backend, warp_size = "interpreter", 32


def options(kind: Kind, name: str, target: Target) -> dict[str, Any]:
    """How the kernel ``name`` is compiled.

    Random bits beside every value take registers: with 8 elements a thread up to 240, which leaves
    few warps to hide the memory's latency; with 4 about half of that. Warps of 64 have 4 anyway.
    """
    found = dict(OPTIONS)
    if name not in ("norm", "measure", "update"):
        return found  # these go through rows, not elements
    if kind.keyed and name != "norm" and target.warp_size == 32:
        found["num_warps"] = 8
    if target.backend == "cuda":
        found["maxnreg"] = registers(kind, name)
    return found


def registers(kind: Kind, name: str) -> int:
    """How many registers a thread may take: told nothing, ptxas spills to need fewer than these.

    Rows that are not aligned have an address and a predicate for each element.
    """
    most = 96 if name == "update" and len(kind.dtypes) < 7 else 128
    if not kind.aligned:
        most = 168
    return min(most * kind.compute.itemsize // 4, 255)


def active_target() -> Target:
    """Of the active device."""
    if triton.knobs.runtime.interpret:
        return NoTarget()
    target: Target = triton.runtime.driver.active.get_current_target()
    return target


def device_twin(function: Callable[..., Any]) -> Any:
    """The jit function of the same name, on the page of the same name in ``kernels``."""
    page = function.__module__.replace("fused_optim.", "fused_optim.kernels.", 1)
    return getattr(importlib.import_module(page), function.__name__)


def constants(kind: Kind) -> dict[str, dict[str, Any]]:
    """The constexpr arguments of the kernels, by name; no option of a group is among them."""
    loads = tuple(device_twin(codec.load) for codec in kind.codecs)
    stores = tuple(device_twin(codec.store) for codec in kind.codecs)
    # a byte is a byte to the kernel: not every GPU has the float8 types
    dtypes = tuple(tl.uint8 if d.itemsize == 1 else DTYPES[d] for d in kind.dtypes)
    grad = kind.first[1]
    shared = {"VECTOR": kind.vector, "BLOCK": BLOCK, "SPAN": SPAN}
    compute = {"COMPUTE": DTYPES[kind.compute], "SCALARS": len(kind.rule.h._fields)}
    early = {**compute, "EARLY": kind.rule.early}
    found = {
        "norm": {"GRAD": grad, "DTYPE": dtypes[grad], "WIDTH": 2 + len(dtypes), **shared},
        "begin": {
            "FORM": device_twin(kind.rule.scalars),
            "COUNTERS": len(kind.rule.counters),
            "COUNTER": None if kind.counter_dtype is None else DTYPES[kind.counter_dtype],
            "HYPERS": len(kind.rule.hyper._fields),
            "MAX_PARTIALS": MAX_PARTIALS,
            "ROWS": ROWS,
            **early,
        },
        "update": {
            "RULE": device_twin(kind.rule.update),
            "EMA": int(kind.ema),
            "LOADS": loads,
            "STORES": stores,
            "KEYED": tuple(codec.keyed for codec in kind.codecs),
            "FIRST": kind.first,
            "DTYPES": dtypes,
            **compute,
            **shared,
        },
    }
    if kind.rule.per_tensor is not None:
        sums = {"QUANTITIES": kind.rule.per_tensor.quantities, **early}
        found["measure"] = {
            "MEASURE": device_twin(kind.rule.per_tensor.measure),
            "STATES": len(kind.codecs) - 2 - kind.ema,
            "LOADS": loads,
            "FIRST": kind.first,
            "DTYPES": dtypes,
            **sums,
            **shared,
        }
        found["finish"] = {
            "FINISH": device_twin(kind.rule.per_tensor.finish),
            "WIDTH": 2 + len(dtypes),
            "BLOCK": MAX_PARTIALS,
            **sums,
        }
    return found


def upload(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A copy of ``array`` on ``device``, without waiting for it.

    Each copy has pinned memory of its own, which torch's host allocator gives out again only
    after the copy has run; so nothing is overwritten on the way.
    """
    host = torch.from_numpy(array)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def chunk_maps(numels: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where a program finds its row: the first chunk of each row, and the row of each span.

    One entry a chunk would be 3 GB for a model of 400 billion parameters; with one entry a SPAN a
    program searches the few rows that share its span.

    Returns:
        int64 [rows + 1]; int32 [spans + 1]: the row of the first chunk of each span, the last row.
    """
    firsts = np.concatenate([[0], np.cumsum(-(-np.array(numels, np.int64) // BLOCK))])
    marks = np.append(np.arange(0, firsts[-1], SPAN), max(firsts[-1] - 1, 0))
    # of rows that begin at one chunk, the last is the one that is not empty
    return firsts, (np.searchsorted(firsts[:-1], marks, "right") - 1).astype(np.int32)


class Ready:
    """A kernel with its constants and options, launched past what Triton does at each call.

    To bind the arguments and to look for the kernel takes Triton 60 us, most of them for constants
    that never change here. What Triton would compile anew for is the key here too.
    """

    def __init__(self, kernel: Any, fixed: dict[str, Any]) -> None:
        self.kernel, self.fixed = kernel, fixed
        self.compiled: dict[Any, Any] = {}

    def launch(self, programs: int, *args: Any) -> None:
        """Launch; the first time by Triton, which compiles."""
        if not isinstance(self.kernel, triton.JITFunction) or self.kernel.pre_run_hooks:
            self.kernel[(programs,)](*args, **self.fixed)
            return
        key = (triton.runtime.driver.active, *map(self._special, args))
        found = self.compiled.get(key)
        if found is None:
            kernel = self.kernel[(programs,)](*args, **self.fixed)
            rest = self.kernel.arg_names[len(args) :]
            self.compiled[key] = kernel, tuple(self.fixed[name] for name in rest)
        else:
            kernel, rest = found
            kernel[(programs, 1, 1)](*args, *rest)

    @staticmethod
    def _special(arg: Tensor | int | None) -> Any:
        """What a kernel may depend on: dtype and alignment of memory; the width of a number."""
        if isinstance(arg, Tensor):
            return arg.dtype, arg.data_ptr() % 16 == 0
        # numbers are not specialized further: see do_not_specialize of the kernels
        return arg if arg is None else -(1 << 31) <= arg < 1 << 31


class TritonLaunch:
    """Rows of one kind. Device tables are rebuilt when an address, a size or an option changes."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.constants = constants(kind)
        target = active_target()
        self.options = {name: options(kind, name, target) for name in self.constants}
        self.ready: dict[str, Ready] = {}
        # numel, offset and the addresses of the columns: what is on the device as self.table
        self.host = np.empty((0, 2 + len(kind.dtypes)), np.int64)
        self.numels: list[int] = []
        self.counters: list[tuple[int, ...]] = []
        self.members: list[tuple[int, int]] = []
        self.values: list[list[float]] = []
        self.bound: list[Options] = []

    def bind(self, bucket: Bucket) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        numels = [row.columns[0].numel() for row in bucket.rows]
        addresses = [
            (row.place.offset, *(column.data_ptr() for column in row.columns))
            for row in bucket.rows
        ]
        counters = [tuple(c.data_ptr() for c in row.counters) for row in bucket.rows]
        device = self.kind.device
        self._bind_rows(np.column_stack([np.array(numels), np.array(addresses)]).astype(np.int64))
        if numels != self.numels:
            firsts, spans = chunk_maps(numels)
            self.chunks = int(firsts[-1])
            self.firsts, self.spans = upload(firsts, device), upload(spans, device)
            scalars = HEAD + len(self.kind.rule.h._fields)
            self.scalars = torch.empty(len(numels), scalars, dtype=self.kind.compute, device=device)
        if counters != self.counters:
            self.counter_table = upload(np.array(counters, np.int64), device)
        members = [(m, r.place.number) for m, r in zip(bucket.members, bucket.rows, strict=True)]
        if members != self.members:
            self.groups = upload(np.array(members, np.int32), device)
        self.numels, self.counters, self.members = numels, counters, members
        self._bind_options(bucket.options)
        self._hold()

    def move(self, gradients: np.ndarray[Any, Any], options: list[Options]) -> None:
        """Go on with the rows that are bound; their gradients are at these addresses now."""
        table = self.host.copy()
        table[:, 2 + self.kind.first[1]] = gradients
        self._bind_rows(table)
        self._bind_options(options)
        self._hold()

    def _bind_rows(self, table: np.ndarray[Any, Any]) -> None:
        # the array itself must not change later: on the CPU it is the upload
        if not np.array_equal(table, self.host):
            self.table, self.host = upload(table, self.kind.device), table

    def _hold(self) -> None:
        """Let the tables outlive this stream's work, whichever stream they were made on."""
        if self.kind.device.type == "cpu":
            return
        stream = torch.get_device_module(self.kind.device).current_stream(self.kind.device)
        tables = [self.table, self.firsts, self.spans, self.groups, self.hyper, self.scalars]
        if self.kind.counter_dtype is not None:
            tables.append(self.counter_table)
        for table in tables:
            table.record_stream(stream)

    def _bind_options(self, options: list[Options]) -> None:
        """Upload options that changed; a tensor on the device is copied there, not read here."""
        if len(self.bound) == len(options) and all(map(is_, options, self.bound)):
            return
        there = [
            (i, j, option)
            for i, group in enumerate(options)
            for j, option in enumerate(group)
            if isinstance(option, Tensor)
        ]
        # no number equals this one, so a tensor that gives way to a number is seen
        values = [[math.nan if isinstance(x, Tensor) else x for x in group] for group in options]
        if values != self.values:
            self.hyper = upload(np.array(values, np.float64), self.kind.device)
            self.values = values
        for i, j, option in there:
            self.hyper[i, j].copy_(option.squeeze())
        # tuples of numbers do not change
        self.bound = [] if there else list(options)

    def norm(self) -> Tensor:
        """See :class:`~fused_optim.backends.Launch`."""
        chunks = self.chunks
        # the number of programs depends on the sizes alone: the same bits on every device
        programs = min(chunks, MAX_PARTIALS)
        partials = torch.empty(programs, 2, dtype=torch.float64, device=self.kind.device)
        arguments = (self.table, self.firsts, self.spans, partials, chunks)
        self._run("norm", norm.norm, programs, *arguments)
        return partials

    def begin(self, partials: Tensor | None, report: Tensor | None, scaler: Scaler) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        rows = len(self.numels)
        count = 0 if partials is None else len(partials)
        counters = None if self.kind.counter_dtype is None else self.counter_table
        tables = (counters, self.groups, self.hyper)
        arguments = (partials, *tables, *scaler, self.scalars, report)
        self._run("begin", begin_page.begin, -(-rows // ROWS), *arguments, count, rows)

    def update(self) -> Tensor | None:
        """See :class:`~fused_optim.backends.Launch`."""
        if self.kind.rule.per_tensor is not None:
            self._measure(self.kind.rule.per_tensor.quantities)
        counts = None
        if self.kind.counts:
            counts = torch.zeros(self.chunks, dtype=torch.int32, device=self.kind.device)
        arguments = (self.table, self.firsts, self.spans, self.scalars, counts)
        self._run("update", update.update, self.chunks, *arguments)
        return counts

    def _measure(self, quantities: int) -> None:
        """Sum over each tensor what the rule needs, and form the scalars that depend on it."""
        chunks = self.chunks
        sums = torch.empty(chunks, quantities, dtype=torch.float64, device=self.kind.device)
        arguments = (self.table, self.firsts, self.spans, self.scalars, sums)
        self._run("measure", measure.measure, chunks, *arguments)
        last = (self.table, self.firsts, sums, self.scalars)
        self._run("finish", measure.finish, len(self.numels), *last)

    def _run(self, name: str, kernel: Callable[..., Any], programs: int, *args: Any) -> None:
        if programs == 0:
            return
        device = self.kind.device
        guard = contextlib.nullcontext()
        if device.type != "cpu":  # a launch goes to the current device, whatever its arguments
            guard = torch.get_device_module(device).device(device)
        if name not in self.ready:
            self.ready[name] = Ready(kernel, {**self.constants[name], **self.options[name]})
        with guard:
            self.ready[name].launch(programs, *args)


assert len(COMMON_OPTIONS) == 9  # what the kernel begin reads
