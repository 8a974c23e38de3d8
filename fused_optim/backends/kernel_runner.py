"""The runner of a bucket by kernels: the tables that they read, and their launches.

A GPU and the CPU run the same kernels on the same tables; an :class:`Executor` launches the
programs of a kernel on one of them.
"""

import math
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fused_optim.backends.base import AmpState, Bucket, BucketKey, BucketRunner, GroupOptions
from fused_optim.backends.constexprs import Geometry
from fused_optim.backends.rows import Row
from fused_optim.kernels.signatures import CommonScalars

Argument = Tensor | int | None


class Executor(Protocol):
    """An executor of kernels.

    Attributes:
        geometry: sizes by which work is divided into programs.
        neutral: default value, by name, of each optional argument, for an executor that compiles a
            kernel once; where it is empty, None is passed, for which Triton compiles again.
    """

    geometry: Geometry
    neutral: Mapping[str, Tensor]

    def compile(self) -> None:
        """Compile the kernels, so that errors are raised before any tensor is changed.

        Raises:
            CompileError: a kernel cannot be compiled.
        """

    def run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        """Run ``programs`` programs of the kernel ``name``, which process ``elements`` elements."""


def upload(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return a copy of ``array`` on ``device``, without waiting for it.

    Each copy has separate pinned memory, which the host allocator of torch reuses only after the
    copy has run; so no transfer is overwritten.
    """
    host = torch.from_numpy(array)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def chunk_maps(
    numels: list[int], geometry: Geometry
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the tables by which a program looks up its row.

    One entry per chunk would take 3 GB for a model of 400 billion parameters; with one per span a
    program searches the few rows that share its span.

    Returns:
        int64 [rows + 1], the first chunk of each row; int32 [spans + 1], the row of the first chunk
        of each span, and the last row.
    """
    chunks = -(-np.array(numels, np.int64) // geometry.chunk)
    firsts = np.concatenate([[0], np.cumsum(chunks)])
    marks = np.append(np.arange(0, firsts[-1], geometry.span), max(firsts[-1] - 1, 0))
    # several rows begin at the same chunk if all but the last are empty
    return firsts, (np.searchsorted(firsts[:-1], marks, "right") - 1).astype(np.int32)


class KernelRunner(BucketRunner):
    """A runner by kernels, which rebuilds tables only if an address, size or option changes."""

    def __init__(self, key: BucketKey, executor: Executor) -> None:
        self.key, self.executor, self.geometry = key, executor, executor.geometry
        # host copy of self.table: see the kernel update
        self.host = np.empty((0, key.table_width), np.int64)
        self.numels: list[int] = []
        self.elements = 0
        self.scalar_state: list[tuple[int, ...]] = []
        self.group_and_index: list[tuple[int, int]] = []
        self.values: list[list[float]] = []
        self.bound: list[GroupOptions] = []
        self.whole_numels: list[int] = []

    @override
    def bind(self, bucket: Bucket) -> None:
        self.executor.compile()
        numels = [row.columns[0].numel() for row in bucket.rows]
        addresses = [
            (row.noise_key.element_offset, *(column.data_ptr() for column in row.columns))
            for row in bucket.rows
        ]
        if self.key.strided:
            runs = [(row.noise_key.run or row.columns[0].numel() or 1) for row in bucket.rows]
            addresses = [
                (*entries, run, row.noise_key.stride)
                for entries, run, row in zip(addresses, runs, bucket.rows, strict=True)
            ]
        scalar_state = [tuple(c.data_ptr() for c in row.scalar_state) for row in bucket.rows]
        device = self.key.device
        self._bind_rows(np.column_stack([np.array(numels), np.array(addresses)]).astype(np.int64))
        if numels != self.numels:
            firsts, spans = chunk_maps(numels, self.geometry)
            self.chunks, self.elements = int(firsts[-1]), sum(numels)
            self.firsts, self.spans = upload(firsts, device), upload(spans, device)
            scalars = len(CommonScalars._fields) + len(self.key.rule.scalars._fields)
            self.scalars = torch.empty(len(numels), scalars, dtype=self.key.compute, device=device)
        if scalar_state != self.scalar_state:
            self.scalar_state_table = upload(np.array(scalar_state, np.int64), device)
        group_and_index = [
            (m, r.noise_key.param_index)
            for m, r in zip(bucket.group_of_row, bucket.rows, strict=True)
        ]
        if group_and_index != self.group_and_index:
            self.groups = upload(np.array(group_and_index, np.int32), device)
        self.numels, self.scalar_state, self.group_and_index = numels, scalar_state, group_and_index
        self._bind_options(bucket.options)
        self._record_streams()

    @override
    def rebind(
        self,
        grad_addresses: np.ndarray[Any, Any],
        make_rows: Callable[[], list[Row]],
        options: list[GroupOptions],
    ) -> None:
        table = self.host.copy()
        table[:, 2 + self.key.first[1]] = grad_addresses
        self._bind_rows(table)
        self._bind_options(options)
        self._record_streams()

    def _bind_rows(self, table: np.ndarray[Any, Any]) -> None:
        # the array must not be modified later: on the CPU, upload() does not copy it
        if not np.array_equal(table, self.host):
            self.table, self.host = upload(table, self.key.device), table

    def _record_streams(self) -> None:
        """Record the current stream as a user of the tables, which another may have allocated."""
        if self.key.device.type == "cpu":
            return
        stream = torch.get_device_module(self.key.device).current_stream(self.key.device)
        tables = [self.table, self.firsts, self.spans, self.groups, self.options, self.scalars]
        if self.key.scalar_state_dtype is not None:
            tables.append(self.scalar_state_table)
        if self.whole_numels:
            tables.extend(self.whole_tables)
        for table in tables:
            table.record_stream(stream)

    def _bind_options(self, options: list[GroupOptions]) -> None:
        """Upload options that changed; copy an option that is a tensor on the device there."""
        if len(self.bound) == len(options) and all(map(is_, options, self.bound)):
            return
        tensors = [
            (i, j, option)
            for i, group in enumerate(options)
            for j, option in enumerate(group.flat)
            if isinstance(option, Tensor)
        ]
        # NaN equals no number, so that replacing a tensor by a number is detected
        values = [
            [math.nan if isinstance(x, Tensor) else x for x in group.flat] for group in options
        ]
        if values != self.values:
            self.options = upload(np.array(values, np.float64), self.key.device)
            self.values = values
        for i, j, option in tensors:
            self.options[i, j].copy_(option.squeeze())
        # tuples of numbers are immutable; a tensor may change in place
        self.bound = [] if tensors else list(options)

    @override
    def norm(self) -> Tensor:
        chunks = self.chunks
        # a function of the sizes alone, for the same bits on every device
        programs = min(chunks, self.geometry.partials)
        partials = torch.empty(programs, 2, dtype=torch.float64, device=self.key.device)
        arguments = (self.table, self.firsts, self.spans, partials, chunks)
        self._run("norm", programs, self.elements, *arguments)
        return partials

    @override
    def prepare(self, partials: Tensor | None, report: Tensor | None, amp_state: AmpState) -> None:
        rows, neutral = len(self.numels), self.executor.neutral
        grad_scale, found_inf = amp_state
        if partials is None:
            partials = neutral.get("partials")
        if grad_scale is None:
            grad_scale = neutral.get("grad_scale")
        if found_inf is None:
            found_inf = neutral.get("found_inf")
        if report is None:
            report = neutral.get("report")
        count = 0 if partials is None else len(partials)
        states = None if self.key.scalar_state_dtype is None else self.scalar_state_table
        tables = (states, self.groups, self.options)
        arguments = (partials, *tables, grad_scale, found_inf, self.scalars, report)
        self._run("prepare", -(-rows // self.geometry.rows), 0, *arguments, count, rows)

    @override
    def sum_rows(self) -> Tensor:
        assert self.key.rule.reduction is not None
        sums = self._reduce(self.key.rule.reduction.num_sums)
        # sums of each row's chunks, in order
        return torch.segment_reduce(sums, "sum", offsets=self.firsts, axis=0, initial=0.0)

    @override
    def update(self, sums: Tensor | None = None, numels: list[int] | None = None) -> Tensor | None:
        if sums is not None and numels is not None:
            self._finalize_whole(sums, numels)
        elif self.key.rule.reduction is not None:
            chunk_sums = self._reduce(self.key.rule.reduction.num_sums)
            last = (self.table, self.firsts, chunk_sums, self.scalars)
            self._run("finalize", len(self.numels), 0, *last)
        counts = None
        if self.key.count_stalled:
            counts = torch.zeros(self.chunks, dtype=torch.int32, device=self.key.device)
        arguments = (self.table, self.firsts, self.spans, self.scalars, counts)
        self._run("update", self.chunks, self.elements, *arguments)
        return counts

    def _reduce(self, num_sums: int) -> Tensor:
        """Return the sums over each chunk, float64 [chunks, num_sums]."""
        chunks = self.chunks
        sums = torch.empty(chunks, num_sums, dtype=torch.float64, device=self.key.device)
        arguments = (self.table, self.firsts, self.spans, self.scalars, sums)
        self._run("reduce", chunks, self.elements, *arguments)
        return sums

    def _finalize_whole(self, sums: Tensor, numels: list[int]) -> None:
        """Form the scalars that depend on the sums over whole tensors, which the rows shard."""
        if numels != self.whole_numels:
            table = np.zeros((len(numels), self.key.table_width), np.int64)
            table[:, 0] = numels
            firsts = np.arange(len(numels) + 1, dtype=np.int64)
            # one row of sums takes the place of the chunks of each row
            self.whole_tables = upload(table, self.key.device), upload(firsts, self.key.device)
            self.whole_numels = numels
        arguments = (*self.whole_tables, sums.contiguous(), self.scalars)
        self._run("finalize", len(numels), 0, *arguments)

    def _run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        if programs:
            self.executor.run(name, programs, elements, *args)
