"""One step: sort the rows into kinds, then norm, begin and update for each kind."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fused_optim.backends.base import Bucket, BucketKey, Launch, Options, AmpState, make_runner
from fused_optim.formats.codecs import Codec
from fused_optim.step.rows import RowTemplate, Row
from fused_optim.rules.common import Rule


def is_aligned(columns: Sequence[Tensor]) -> bool:
    """Whether every address allows accesses of 16 bytes in the widest column."""
    addresses = 0
    for column in columns:
        addresses |= column.data_ptr()
    if addresses % 16 == 0:
        return True
    elements = 16 // max(column.itemsize for column in columns)
    return all(column.data_ptr() % (elements * column.itemsize) == 0 for column in columns)


def make_bucket_key(
    row: Row, rule: Rule, codecs: tuple[Codec, ...], backend: str, ema: bool, counts: bool
) -> BucketKey:
    """What ``row`` must share with others to share a launch."""
    return BucketKey(
        backend,
        row.columns[0].device,
        rule,
        codecs,
        tuple(column.dtype for column in row.columns),
        row.scalar_state[0].dtype if row.scalar_state else None,
        backend == "triton" and is_aligned(row.columns),
        ema,
        counts,
    )


class CachedInputs(NamedTuple):
    """The tensors of a step whose rows are those of the last one, but for where gradients are.

    Attributes:
        params: those that are updated.
        tensors: lists all of the step, in the order that ``recipes`` know.
        gradients: int64, the address of each parameter's gradient.
        recipes: how to make each row.
    """

    params: list[Tensor]
    tensors: Callable[[], list[Tensor]]
    gradients: np.ndarray[Any, Any]
    recipes: list[RowTemplate]

    def make_rows(self, which: Sequence[int]) -> list[Row]:
        """Return the rows with these indices."""
        tensors = self.tensors()
        return [self.recipes[i].row(tensors) for i in which]


class Plan:
    """Keeps the launches, with their device tables, from step to step.

    Nothing is keyed on a tensor's identity and no tensor of the user is kept: rows come anew each
    step, and a launch compares their addresses with those it has uploaded.

    Attributes:
        launches: one for each kind of rows.
        stalled: what the last step counted, where it was asked to.
        rows: of each kind, which rows of the step.
        groups: of each kind, the groups that have rows of it.
    """

    def __init__(self) -> None:
        self.launches: dict[BucketKey, Launch] = {}
        self.stalled: list[Tensor] = []
        self.rows: dict[BucketKey, list[int]] = {}
        self.groups: dict[BucketKey, list[int]] = {}

    def step(
        self,
        rows: Sequence[tuple[BucketKey, Row]],
        options: Sequence[Options],
        measure: bool,
        scaler: AmpState,
    ) -> Tensor | None:
        """Update every row.

        Args:
            rows: the parameters and their kinds.
            options: of each parameter group.
            measure: whether anything needs the norm.
            scaler: of automatic mixed precision.

        Returns:
            float64 [3] on the first row's device: the gradient norm (NaN unless measured), the
            clip factor, and 1 if rows were skipped; None without rows.
        """
        self._bind(rows, options)
        answer = self._run(measure, scaler)
        for _, row in rows:
            for tensor, copy in row.copies:
                tensor.copy_(copy)
        _say_written([row.columns[0] for _, row in rows])
        return answer

    def again(
        self, same: CachedInputs, options: Sequence[Options], measure: bool, scaler: AmpState
    ) -> Tensor | None:
        """Update the rows of the last step once more: see :meth:`step`."""
        for key, launch in self.launches.items():
            own, values = self.rows[key], [options[group] for group in self.groups[key]]
            gradients = same.gradients if len(self.rows) == 1 else same.gradients[own]
            launch.rebind(gradients, partial(same.make_rows, own), values)
        answer = self._run(measure, scaler)
        _say_written(same.params)
        return answer

    def _run(self, measure: bool, scaler: AmpState) -> Tensor | None:
        """Launch everything that is bound."""
        launches = self.launches
        if not launches:
            self.stalled = []
            return None
        partials = _partials(launches) if measure else {}
        device = next(iter(launches)).device
        report: Tensor | None = torch.empty(3, dtype=torch.float64, device=device)
        answer = report
        for key, launch in launches.items():
            launch.begin(partials.get(key.device), report, _on(key.device, scaler))
            report = None  # one is enough
        counts = [launch.update() for launch in launches.values()]
        self.stalled = [count for count in counts if count is not None]
        return answer

    def _bind(self, rows: Sequence[tuple[BucketKey, Row]], options: Sequence[Options]) -> None:
        """Give each launch its rows of this step; launches without rows are dropped."""
        buckets: dict[BucketKey, Bucket] = {}
        self.rows, self.groups = {}, {}
        for i, (key, row) in enumerate(rows):
            if key not in buckets:
                buckets[key], self.rows[key], self.groups[key] = Bucket(), [], []
            bucket, groups = buckets[key], self.groups[key]
            if row.group not in groups[-1:]:  # the rows of a group follow each other
                groups.append(row.group)
                bucket.options.append(options[row.group])
            bucket.rows.append(row)
            bucket.members.append(len(groups) - 1)
            self.rows[key].append(i)
        self.launches = {key: self.launches.get(key) or make_runner(key) for key in buckets}
        for key, bucket in buckets.items():
            self.launches[key].bind(bucket)


def _say_written(params: list[Tensor]) -> None:
    """Autograd must see that saved parameters have changed; a kernel does not tell it."""
    torch.autograd.graph.increment_version(params)


def _on(device: torch.device, scaler: AmpState) -> AmpState:
    if scaler.scale is None and scaler.found_inf is None:
        return scaler
    return AmpState(*(None if x is None else x.to(device, non_blocking=True) for x in scaler))


def _partials(launches: dict[BucketKey, Launch]) -> dict[torch.device, Tensor]:
    """The partial sums of all launches, on each device that needs them."""
    parts = [launch.norm() for launch in launches.values()]
    if len(parts) == 1:
        return {parts[0].device: parts[0]}
    # a meta tensor has no value to add to the norm of others
    return {
        device: torch.cat(
            [
                # a copy to the CPU must be waited for; other devices order it on their streams
                part.to(device, non_blocking=device.type != "cpu")
                for part in parts
                if device.type == "meta" or part.device.type != "meta"
            ]
        )
        for device in dict.fromkeys(key.device for key in launches)
    }
