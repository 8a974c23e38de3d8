"""The runner of a rule with a step on matrices, between two elementwise passes.

Each pass is a bucket of its own for the other runners: the first stores the directions in a
workspace in place of the parameters, and the second reads them as gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fused_optim.backends.base import AmpState, Bucket, BucketKey, BucketRunner, GroupOptions
from fused_optim.backends.matrix_batches import Layout, transform_batches
from fused_optim.backends.rows import Row
from fused_optim.formats.codecs import Codec, ColumnSpec, store_direction
from fused_optim.formats.registry import PLAIN
from fused_optim.rules.common import MatrixStep


def matrix_step_of(key: BucketKey) -> MatrixStep:
    """Return the step on matrices of the rule of a bucket that has one."""
    assert key.rule.matrix_step is not None
    return key.rule.matrix_step


def direction_dtype(step: MatrixStep, device: torch.device) -> torch.dtype:
    """Return the dtype of the directions: bf16, or float32 on the CPU, unless the rule sets it."""
    chosen: torch.dtype | None = step.settings.dtype
    if chosen is not None:
        return chosen
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def make_first_key(key: BucketKey) -> BucketKey:
    """Return the key of the first pass: parameter (read), direction (written), gradient, states."""
    weight, dtype = key.codecs[0], direction_dtype(matrix_step_of(key), key.device)
    count = len(weight.columns)
    columns = [column._replace(accesses=1) for column in weight.columns]
    direction = ColumnSpec("direction", dtype, accesses=1)
    codec = Codec(weight.load, store_direction, (*columns, direction))
    last = len(key.dtypes) - key.ema
    return key._replace(
        rule=key.rule._replace(
            matrix_step=None, state_keys=key.rule.state_keys[: len(key.codecs) - 2 - key.ema]
        ),
        codecs=(codec, *key.codecs[1 : len(key.codecs) - key.ema]),
        dtypes=(*key.dtypes[:count], dtype, *key.dtypes[count:last]),
        ema=False,
        count_stalled=False,
        cautious=False,
        exchanged=False,
    )


def make_second_key(key: BucketKey) -> BucketKey:
    """Return the key of the second pass: parameter, direction (read), EMA."""
    count, ema = len(key.codecs[0].columns), int(key.ema)
    return key._replace(
        rule=matrix_step_of(key).second._replace(
            scalar_state=key.rule.scalar_state, state_keys=("ema",) * ema
        ),
        codecs=(key.codecs[0], PLAIN, *key.codecs[len(key.codecs) - ema :]),
        dtypes=(
            *key.dtypes[:count],
            direction_dtype(matrix_step_of(key), key.device),
            *key.dtypes[len(key.dtypes) - ema :],
        ),
        advances=False,
        exchanged=False,
    )


def list_passes(key: BucketKey) -> list[BucketKey]:
    """Return the keys of the elementwise passes of a bucket."""
    if key.rule.matrix_step is None:
        return [key]
    return [make_first_key(key), make_second_key(key)]


class Direction(NamedTuple):
    """A direction of one parameter, with the states of its rows, for the step on matrices.

    Attributes:
        values: direction, replaced by its transform.
        row_states: states of the rows of its matrices.
        skip: 0-dim tensor that is True if these states stay, or None.
    """

    values: Tensor
    row_states: tuple[Tensor, ...]
    skip: Tensor | None


class MatrixRunner(BucketRunner):
    """A runner of two passes with a step on matrices between them.

    The workspace exists during a step only.
    """

    def __init__(self, key: BucketKey, make_runner: Callable[[BucketKey], BucketRunner]) -> None:
        self.key, self.step = key, matrix_step_of(key)
        self.dtype = direction_dtype(self.step, key.device)
        self.first = make_runner(make_first_key(key))
        self.second = make_runner(make_second_key(key))
        self.layouts: list[Any] = []

    @override
    def bind(self, bucket: Bucket) -> None:
        layouts = [row.layout for row in bucket.rows]
        if layouts != self.layouts:
            numels = [row.columns[0].numel() for row in bucket.rows]
            cut = None if self.key.exchanged else self.step.cut
            self.layout, self.layouts = Layout(layouts, numels, cut), layouts
        self.group_of_row = bucket.group_of_row
        self.skips_group = [bool(group.common.skips) for group in bucket.options]
        self.row_states = [row.row_states for row in bucket.rows]
        device = bucket.rows[0].columns[0].device
        self.workspace = torch.empty(self.layout.numel, dtype=self.dtype, device=device)
        rows = [
            self._make_rows(*pair) for pair in zip(bucket.rows, self.layout.offsets, strict=True)
        ]
        options = bucket.options
        self.first.bind(Bucket([first for first, _ in rows], options, bucket.group_of_row))
        seconds = [group.second for group in options]
        self.second.bind(Bucket([second for _, second in rows], seconds, bucket.group_of_row))

    def _make_rows(self, row: Row, offset: int) -> tuple[Row, Row]:
        """Return the rows of both passes."""
        count, ema = len(self.key.codecs[0].columns), int(self.key.ema)
        last = len(row.columns) - ema
        param = row.columns[0]
        direction = self.workspace.as_strided(param.shape, param.stride(), offset)
        weight, rest = row.columns[:count], row.columns[count:last]
        first = row._replace(columns=(*weight, direction, *rest))
        return first, row._replace(columns=(*weight, direction, *row.columns[last:]))

    @override
    def rebind(
        self,
        grad_addresses: "np.ndarray[Any, Any]",
        make_rows: Callable[[], list[Row]],
        options: list[GroupOptions],
    ) -> None:
        self.bind(Bucket(make_rows(), options, self.group_of_row))

    @override
    def norm(self) -> Tensor:
        return self.first.norm()

    @override
    def prepare(self, partials: Tensor | None, report: Tensor | None, amp_state: AmpState) -> None:
        self.first.prepare(partials, report, amp_state)
        self.skips = self._find_skips(partials, amp_state.found_inf)
        # a direction is neither scaled nor clipped
        self.second.prepare(partials, None, AmpState(None, amp_state.found_inf))

    def _find_skips(self, partials: Tensor | None, found_inf: Tensor | None) -> list[Tensor | None]:
        """Return for each row a 0-dim tensor that is True if it is skipped; None if it is not."""
        bad = None if partials is None else partials[:, 1].sum() != 0
        found = None if found_inf is None else found_inf.squeeze() != 0
        flags: list[Tensor | None] = []
        for skips in self.skips_group:
            given = [flag for flag in (bad if skips else None, found) if flag is not None]
            flags.append(torch.stack(given).any() if given else None)
        return [flags[group] for group in self.group_of_row]

    @override
    def sum_rows(self) -> Tensor:
        raise NotImplementedError("a rule with a step on matrices has no reduction")

    def form_directions(self) -> list[Direction]:
        """Run the first pass; return the direction of each row, for the step to transform."""
        self.first.update()
        places = zip(self.layouts, self.layout.offsets, strict=True)
        formed = [
            self.workspace.as_strided(shape, strides, offset) for (shape, strides), offset in places
        ]
        return [Direction(*row) for row in zip(formed, self.row_states, self.skips, strict=True)]

    @override
    def update(self, sums: Tensor | None = None, numels: list[int] | None = None) -> Tensor | None:
        if not self.key.exchanged:
            self.form_directions()
            states = list(zip(*self.row_states, strict=True))
            batches = self.layout.batches
            transform_batches(self.workspace, batches, self.step, states, self.skips)
        counts = self.second.update()
        del self.workspace, self.row_states
        return counts
