"""The tables that the kernels read, for whoever executes them.

A GPU and the CPU run the same kernels on the same tables: what differs, launching so many programs
of a kernel with these arguments, is an :class:`Executor`.
"""

import math
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fused_optim.backends.base import NUM_COMMON_SCALARS, Bucket, BucketKey, Options, AmpState
from fused_optim.backends.constexprs import Geometry
from fused_optim.step.rows import Row

Argument = Tensor | int | None


class Executor(Protocol):
    """Runs kernels.

    Attributes:
        geometry: how the work is cut into programs.
        neutral: values for optional arguments that are not there, by name, for an executor that
            compiles a kernel once; others pass None, for which a kernel is compiled anew.
    """

    geometry: Geometry
    neutral: Mapping[str, Tensor]

    def prepare(self) -> None:
        """Make ready what can be made ready before anything is changed.

        Raises:
            CompileError: a kernel cannot be compiled, with the reason.
        """

    def run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        """Run ``programs`` programs of the kernel ``name``, which go through ``elements``."""


def upload(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A copy of ``array`` on ``device``, without waiting for it.

    Each copy has pinned memory of its own, which torch's host allocator gives out again only
    after the copy has run; so nothing is overwritten on the way.
    """
    host = torch.from_numpy(array)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def chunk_maps(
    numels: list[int], geometry: Geometry
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where a program finds its row: the first chunk of each row, and the row of each span.

    One entry a chunk would be 3 GB for a model of 400 billion parameters; with one entry a span a
    program searches the few rows that share its span.

    Returns:
        int64 [rows + 1]; int32 [spans + 1]: the row of the first chunk of each span, the last row.
    """
    chunks = -(-np.array(numels, np.int64) // geometry.chunk)
    firsts = np.concatenate([[0], np.cumsum(chunks)])
    marks = np.append(np.arange(0, firsts[-1], geometry.span), max(firsts[-1] - 1, 0))
    # of rows that begin at one chunk, the last is the one that is not empty
    return firsts, (np.searchsorted(firsts[:-1], marks, "right") - 1).astype(np.int32)


class KernelRunner:
    """Rows of one kind. Tables are rebuilt when an address, a size or an option changes."""

    def __init__(self, key: BucketKey, executor: Executor) -> None:
        self.key, self.executor, self.geometry = key, executor, executor.geometry
        # numel, offset and the addresses of the columns: what is on the device as self.table
        self.host = np.empty((0, 2 + len(key.dtypes)), np.int64)
        self.numels: list[int] = []
        self.elements = 0
        self.scalar_state: list[tuple[int, ...]] = []
        self.members: list[tuple[int, int]] = []
        self.values: list[list[float]] = []
        self.bound: list[Options] = []

    def bind(self, bucket: Bucket) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        self.executor.prepare()
        numels = [row.columns[0].numel() for row in bucket.rows]
        addresses = [
            (row.place.offset, *(column.data_ptr() for column in row.columns))
            for row in bucket.rows
        ]
        scalar_state = [tuple(c.data_ptr() for c in row.scalar_state) for row in bucket.rows]
        device = self.key.device
        self._bind_rows(np.column_stack([np.array(numels), np.array(addresses)]).astype(np.int64))
        if numels != self.numels:
            firsts, spans = chunk_maps(numels, self.geometry)
            self.chunks, self.elements = int(firsts[-1]), sum(numels)
            self.firsts, self.spans = upload(firsts, device), upload(spans, device)
            scalars = NUM_COMMON_SCALARS + len(self.key.rule.h._fields)
            self.scalars = torch.empty(len(numels), scalars, dtype=self.key.compute, device=device)
        if scalar_state != self.scalar_state:
            self.counter_table = upload(np.array(scalar_state, np.int64), device)
        members = [(m, r.place.number) for m, r in zip(bucket.members, bucket.rows, strict=True)]
        if members != self.members:
            self.groups = upload(np.array(members, np.int32), device)
        self.numels, self.scalar_state, self.members = numels, scalar_state, members
        self._bind_options(bucket.options)
        self._record_streams()

    def rebind(
        self,
        gradients: np.ndarray[Any, Any],
        rows: Callable[[], list[Row]],
        options: list[Options],
    ) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        table = self.host.copy()
        table[:, 2 + self.key.first[1]] = gradients
        self._bind_rows(table)
        self._bind_options(options)
        self._record_streams()

    def _bind_rows(self, table: np.ndarray[Any, Any]) -> None:
        # the array itself must not change later: on the CPU it is the upload
        if not np.array_equal(table, self.host):
            self.table, self.host = upload(table, self.key.device), table

    def _record_streams(self) -> None:
        """Let the tables outlive this stream's work, whichever stream they were made on."""
        if self.key.device.type == "cpu":
            return
        stream = torch.get_device_module(self.key.device).current_stream(self.key.device)
        tables = [self.table, self.firsts, self.spans, self.groups, self.hparams, self.scalars]
        if self.key.counter_dtype is not None:
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
            self.hparams = upload(np.array(values, np.float64), self.key.device)
            self.values = values
        for i, j, option in there:
            self.hparams[i, j].copy_(option.squeeze())
        # tuples of numbers do not change
        self.bound = [] if there else list(options)

    def norm(self) -> Tensor:
        """See :class:`~fused_optim.backends.Launch`."""
        chunks = self.chunks
        # the number of programs depends on the sizes alone: the same bits on every device
        programs = min(chunks, self.geometry.partials)
        partials = torch.empty(programs, 2, dtype=torch.float64, device=self.key.device)
        arguments = (self.table, self.firsts, self.spans, partials, chunks)
        self._run("norm", programs, self.elements, *arguments)
        return partials

    def begin(self, partials: Tensor | None, report: Tensor | None, scaler: AmpState) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        rows, neutral = len(self.numels), self.executor.neutral
        scale, found_inf = scaler
        if partials is None:
            partials = neutral.get("partials")
        if scale is None:
            scale = neutral.get("scale")
        if found_inf is None:
            found_inf = neutral.get("found_inf")
        if report is None:
            report = neutral.get("report")
        count = 0 if partials is None else len(partials)
        scalar_state = None if self.key.counter_dtype is None else self.counter_table
        tables = (scalar_state, self.groups, self.hparams)
        arguments = (partials, *tables, scale, found_inf, self.scalars, report)
        self._run("prepare", -(-rows // self.geometry.rows), 0, *arguments, count, rows)

    def update(self) -> Tensor | None:
        """See :class:`~fused_optim.backends.Launch`."""
        if self.key.rule.reduction is not None:
            self._measure(self.key.rule.reduction.num_sums)
        counts = None
        if self.key.counts:
            counts = torch.zeros(self.chunks, dtype=torch.int32, device=self.key.device)
        arguments = (self.table, self.firsts, self.spans, self.scalars, counts)
        self._run("update", self.chunks, self.elements, *arguments)
        return counts

    def _measure(self, num_sums: int) -> None:
        """Sum over each tensor what the rule needs, and form the scalars that depend on it."""
        chunks = self.chunks
        sums = torch.empty(chunks, num_sums, dtype=torch.float64, device=self.key.device)
        arguments = (self.table, self.firsts, self.spans, self.scalars, sums)
        self._run("reduce", chunks, self.elements, *arguments)
        last = (self.table, self.firsts, sums, self.scalars)
        self._run("finalize", len(self.numels), 0, *last)

    def _run(self, name: str, programs: int, elements: int, *args: Argument) -> None:
        if programs:
            self.executor.run(name, programs, elements, *args)
