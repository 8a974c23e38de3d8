"""The plan of a step: sort rows into buckets, then run norm, prepare and update of each bucket."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fused_optim.backends.base import AmpState, Bucket, BucketKey, BucketRunner, GroupOptions
from fused_optim.backends.rows import Row, RowTemplate
from fused_optim.backends.select import make_runner
from fused_optim.formats.codecs import Codec
from fused_optim.private_api import has_data
from fused_optim.rules.common import Rule


def is_aligned(columns: Sequence[Tensor]) -> bool:
    """Return True if every address allows accesses of 16 bytes in the widest column."""
    addresses = 0
    for column in columns:
        addresses |= column.data_ptr()
    if addresses % 16 == 0:
        return True
    elements = 16 // max(column.itemsize for column in columns)
    return all(column.data_ptr() % (elements * column.itemsize) == 0 for column in columns)


def make_bucket_key(
    row: Row, rule: Rule, codecs: tuple[Codec, ...], backend: str, ema: bool, count_stalled: bool
) -> BucketKey:
    """Return the key of the bucket that ``row`` belongs to."""
    return BucketKey(
        backend,
        row.columns[0].device,
        rule,
        codecs,
        tuple(column.dtype for column in row.columns),
        row.scalar_state[0].dtype if row.scalar_state else None,
        backend == "triton" and is_aligned(row.columns),
        ema,
        count_stalled,
        has_data(row.columns[0]),
    )


class CachedInputs(NamedTuple):
    """The tensors of a step whose rows equal those of the last one, except gradient addresses.

    Attributes:
        params: parameters that are updated.
        list_tensors: function that returns all tensors, in the order that ``templates`` expect.
        grad_addresses: address of the gradient of each parameter, int64 [rows].
        templates: template of each row.
    """

    params: list[Tensor]
    list_tensors: Callable[[], list[Tensor]]
    grad_addresses: np.ndarray[Any, Any]
    templates: list[RowTemplate]

    def make_rows(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows with these indices."""
        tensors = self.list_tensors()
        return [self.templates[i].make_row(tensors) for i in indices]


class PlannedBucket:
    """One bucket of the plan.

    Attributes:
        runner: runner that updates the rows and stores their device tables.
        rows: indices of the bucket's rows among all rows of the step.
        groups: indices of the parameter groups that have rows here.
    """

    def __init__(self, runner: BucketRunner) -> None:
        self.runner = runner
        self.rows: list[int] = []
        self.groups: list[int] = []


class Plan:
    """The buckets of the last step with their runners, which later steps reuse.

    The plan holds no reference to a tensor of the user: each step passes its rows, and a runner
    compares their addresses with those it has uploaded.

    Attributes:
        buckets: buckets of the last step, by key.
        stalled: counts of stalled elements in the last step, for buckets with ``count_stalled``.
    """

    def __init__(self) -> None:
        self.buckets: dict[BucketKey, PlannedBucket] = {}
        self.stalled: list[Tensor] = []

    def run(
        self,
        rows: Sequence[tuple[BucketKey, Row]],
        options: Sequence[GroupOptions],
        needs_norm: bool,
        amp_state: AmpState,
    ) -> Tensor | None:
        """Update every row.

        Args:
            rows: one row for each parameter, with the key of its bucket.
            options: options of each parameter group.
            needs_norm: True if the step needs the norm of the gradients.
            amp_state: tensors of a GradScaler.

        Returns:
            float64 [3] on the device of the first row: gradient norm (NaN unless ``needs_norm``),
            clip factor, and 1 if rows were skipped, else 0; None without rows.
        """
        self._bind(rows, options)
        report = self._launch(needs_norm, amp_state)
        for _, row in rows:
            for copy in row.copies:
                copy.run()
        _bump_version_counters([row.columns[0] for _, row in rows])
        return report

    def run_cached(
        self,
        inputs: CachedInputs,
        options: Sequence[GroupOptions],
        needs_norm: bool,
        amp_state: AmpState,
    ) -> Tensor | None:
        """Update the rows of the last step again; see :meth:`run` for arguments and result."""
        for bucket in self.buckets.values():
            whole = len(self.buckets) == 1
            addresses = inputs.grad_addresses if whole else inputs.grad_addresses[bucket.rows]
            group_options = [options[group] for group in bucket.groups]
            make_rows = partial(inputs.make_rows, bucket.rows)
            bucket.runner.rebind(addresses, make_rows, group_options)
        report = self._launch(needs_norm, amp_state)
        _bump_version_counters(inputs.params)
        return report

    def _launch(self, needs_norm: bool, amp_state: AmpState) -> Tensor | None:
        """Run norm, prepare and update of every bucket."""
        self.stalled = []
        if not self.buckets:
            return None
        partials = self._reduce_norm() if needs_norm else {}
        device = next(iter(self.buckets)).device
        report = torch.empty(3, dtype=torch.float64, device=device)
        for i, (key, bucket) in enumerate(self.buckets.items()):
            # every bucket would write the same report
            out = report if i == 0 else None
            bucket.runner.prepare(partials.get(key.device), out, _move(amp_state, key.device))
        counts = [bucket.runner.update() for bucket in self.buckets.values()]
        self.stalled = [count for count in counts if count is not None]
        return report

    def _bind(self, rows: Sequence[tuple[BucketKey, Row]], options: Sequence[GroupOptions]) -> None:
        """Bind each bucket to its rows of this step; delete buckets without rows."""
        previous, self.buckets = self.buckets, {}
        bound: dict[BucketKey, Bucket] = {}
        for i, (key, row) in enumerate(rows):
            if key not in bound:
                runner = previous[key].runner if key in previous else make_runner(key)
                self.buckets[key], bound[key] = PlannedBucket(runner), Bucket()
            planned, bucket = self.buckets[key], bound[key]
            if row.group not in planned.groups[-1:]:  # the rows of a group are consecutive
                planned.groups.append(row.group)
                bucket.options.append(options[row.group])
            bucket.rows.append(row)
            bucket.group_of_row.append(len(planned.groups) - 1)
            planned.rows.append(i)
        for key, bucket in bound.items():
            self.buckets[key].runner.bind(bucket)

    def _reduce_norm(self) -> dict[torch.device, Tensor]:
        """Return the partial sums of all buckets, on each device that needs them."""
        parts = [bucket.runner.norm() for bucket in self.buckets.values()]
        if len(parts) == 1:
            return {parts[0].device: parts[0]}
        return {
            device: torch.cat(
                [
                    # a copy to the CPU must be synchronous; the streams of other devices order it
                    part.to(device, non_blocking=device.type != "cpu")
                    for part in parts
                    # a meta tensor has no value to add to the norm of others
                    if device.type == "meta" or part.device.type != "meta"
                ]
            )
            for device in dict.fromkeys(key.device for key in self.buckets)
        }


def _bump_version_counters(params: list[Tensor]) -> None:
    """Increment the version counters of parameters, which a kernel does not, for autograd."""
    torch.autograd.graph.increment_version(params)


def _move(amp_state: AmpState, device: torch.device) -> AmpState:
    if amp_state.grad_scale is None and amp_state.found_inf is None:
        return amp_state
    return AmpState(*(None if x is None else x.to(device, non_blocking=True) for x in amp_state))
