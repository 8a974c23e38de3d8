"""The plan of a step: sort rows into buckets, then run norm, prepare and update of each bucket."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fused_optim.backends.base import AmpState, Bucket, BucketKey, BucketRunner, GroupOptions
from fused_optim.backends.matrix_runner import Direction, MatrixRunner
from fused_optim.backends.norm_report import form_report_without_rows
from fused_optim.backends.rows import Row, RowTemplate
from fused_optim.backends.select import make_runner
from fused_optim.formats.codecs import Codec
from fused_optim.private_api import has_data
from fused_optim.rules.common import Rule
from fused_optim.step.collectives import RankSums
from fused_optim.step.matrix_exchange import MatrixExchange


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
    row: Row,
    rule: Rule,
    codecs: tuple[Codec, ...],
    backend: str,
    ema: bool,
    count_stalled: bool,
    sharded_over: tuple[str, ...],
) -> BucketKey:
    """Return the key of the bucket that ``row`` belongs to."""
    stochastic = any(codec.stochastic for codec in codecs)
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
        stochastic and row.noise_key.run > 0,
        sharded_over,
    )


class StepSums(NamedTuple):
    """The sums over all gradients, and the exchanges with other ranks, that a step needs.

    Attributes:
        needs_norm: True if the step needs the norm of the gradients.
        ranks: additions over ranks; None if this rank has all parameters.
        exchange: exchange of matrices that ranks share; None if this rank has all of them whole.
        report_device: device of the report of a step without rows on this rank.
    """

    needs_norm: bool
    ranks: RankSums | None = None
    exchange: MatrixExchange | None = None
    report_device: torch.device = torch.device("cpu")


class CachedInputs(NamedTuple):
    """The tensors of a step whose rows equal those of the last one, except gradient addresses.

    Attributes:
        params: parameters that are updated, and the local tensors of those that are DTensors.
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
        params: for each row, the index of its parameter in the optimizer, and the number of
            elements of the whole parameter.
    """

    def __init__(self, runner: BucketRunner) -> None:
        self.runner = runner
        self.rows: list[int] = []
        self.groups: list[int] = []
        self.params: list[tuple[int, int]] = []


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
        sums: StepSums,
        amp_state: AmpState,
        params: Sequence[tuple[int, int]],
    ) -> Tensor | None:
        """Update every row.

        Args:
            rows: one row for each parameter, with the key of its bucket.
            options: options of each parameter group.
            sums: sums that the step needs.
            amp_state: tensors of a GradScaler.
            params: for each row, the index of its parameter in the optimizer, and the number of
                elements of the whole parameter.

        Returns:
            float64 [3] on the device of the first row: gradient norm (NaN if it is not needed),
            clip factor, and 1 if rows were skipped, else 0; None without rows.
        """
        self._bind(rows, options, params)
        report = self._launch(options, sums, amp_state)
        for _, row in rows:
            for copy in row.copies:
                copy.run()
        bump_version_counters([row.columns[0] for _, row in rows])
        return report

    def run_cached(
        self,
        inputs: CachedInputs,
        options: Sequence[GroupOptions],
        sums: StepSums,
        amp_state: AmpState,
    ) -> Tensor | None:
        """Update the rows of the last step again; see :meth:`run` for arguments and result."""
        for bucket in self.buckets.values():
            whole = len(self.buckets) == 1
            addresses = inputs.grad_addresses if whole else inputs.grad_addresses[bucket.rows]
            group_options = [options[group] for group in bucket.groups]
            make_rows = partial(inputs.make_rows, bucket.rows)
            bucket.runner.rebind(addresses, make_rows, group_options)
        report = self._launch(options, sums, amp_state)
        bump_version_counters(inputs.params)
        return report

    def _launch(
        self, options: Sequence[GroupOptions], sums: StepSums, amp_state: AmpState
    ) -> Tensor | None:
        """Run norm, prepare and update of every bucket."""
        self.stalled = []
        partials: Mapping[torch.device, Tensor] = {}
        if sums.ranks is not None:
            partials, amp_state = self._sum_over_ranks(sums, sums.ranks, amp_state)
            if not self.buckets:
                return self._finish_without_rows(options, sums, partials, amp_state)
        elif self.buckets and sums.needs_norm:
            partials = self._reduce_norm()
        if not self.buckets:
            return None
        device = next(iter(self.buckets)).device
        report = torch.empty(3, dtype=torch.float64, device=device)
        for i, (key, bucket) in enumerate(self.buckets.items()):
            # every bucket would write the same report
            out = report if i == 0 else None
            bucket.runner.prepare(partials.get(key.device), out, _move(amp_state, key.device))
        if sums.exchange is not None:
            sums.exchange.run(self._form_directions())
        counts = self._update(sums.ranks, device)
        self.stalled = [count for count in counts if count is not None]
        return report

    def _form_directions(self) -> dict[int, Direction]:
        """Return the direction of each parameter with shared matrices, by its index."""
        directions: dict[int, Direction] = {}
        for key, bucket in self.buckets.items():
            if key.exchanged:
                assert isinstance(bucket.runner, MatrixRunner)
                formed = bucket.runner.form_directions()
                directions |= zip((i for i, _ in bucket.params), formed, strict=True)
        return directions

    def _update(self, ranks: RankSums | None, device: torch.device) -> list[Tensor | None]:
        """Run the update of every bucket, with sums over the ranks for rules that need them."""
        if ranks is None or not ranks.sums_rows:
            return [bucket.runner.update() for bucket in self.buckets.values()]
        sharded = {key: b for key, b in self.buckets.items() if _is_summed_over_ranks(key)}
        parts = [([i for i, _ in b.params], b.runner.sum_rows()) for b in sharded.values()]
        table = ranks.sum_rows(parts, device)
        counts = []
        for key, bucket in self.buckets.items():
            if key in sharded:
                assert key.rule.reduction is not None
                sums = ranks.select_rows(table, [i for i, _ in bucket.params], key.device)
                sums = sums[:, : key.rule.reduction.num_sums]
                counts.append(bucket.runner.update(sums, [numel for _, numel in bucket.params]))
            else:
                counts.append(bucket.runner.update())
        return counts

    def _sum_over_ranks(
        self, sums: StepSums, ranks: RankSums, amp_state: AmpState
    ) -> tuple[dict[torch.device, Tensor], AmpState]:
        """Return the sums of the norm on each device, and the flag of the scaler of all ranks."""
        if not sums.needs_norm and amp_state.found_inf is None:
            return {}, amp_state
        parts = []
        if sums.needs_norm:
            parts = [(key.sharded_over, b.runner.norm()) for key, b in self.buckets.items()]
        devices = dict.fromkeys(key.device for key in self.buckets)
        device = next(iter(devices), sums.report_device)
        whole = ranks.sum_norm(parts, amp_state.found_inf, device)
        if amp_state.found_inf is not None:
            amp_state = amp_state._replace(found_inf=whole[0, 2:].float())
        partials = whole[:, :2].contiguous()
        on = {d: partials.to(d, non_blocking=d.type != "cpu") for d in devices or (device,)}
        return on if sums.needs_norm else {}, amp_state

    def _finish_without_rows(
        self,
        options: Sequence[GroupOptions],
        sums: StepSums,
        partials: Mapping[torch.device, Tensor],
        amp_state: AmpState,
    ) -> Tensor:
        """Take part in the rest of a step; return its report, which other ranks have too."""
        assert sums.ranks is not None
        if sums.exchange is not None:
            sums.exchange.run({})
        if sums.ranks.sums_rows:
            sums.ranks.sum_rows([], sums.report_device)
        part = partials.get(sums.report_device)
        return form_report_without_rows(part, options[0].common, amp_state, sums.report_device)

    def _bind(
        self,
        rows: Sequence[tuple[BucketKey, Row]],
        options: Sequence[GroupOptions],
        params: Sequence[tuple[int, int]],
    ) -> None:
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
            planned.params.append(params[i])
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


def _is_summed_over_ranks(key: BucketKey) -> bool:
    return key.rule.reduction is not None and bool(key.sharded_over)


def bump_version_counters(params: list[Tensor]) -> None:
    """Increment the version counters of parameters, which a kernel does not, for autograd."""
    torch.autograd.graph.increment_version(params)


def _move(amp_state: AmpState, device: torch.device) -> AmpState:
    if amp_state.grad_scale is None and amp_state.found_inf is None:
        return amp_state
    return AmpState(*(None if x is None else x.to(device, non_blocking=True) for x in amp_state))
