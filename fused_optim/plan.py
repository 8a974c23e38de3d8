"""One step: sort the rows into kinds, then norm, begin and update for each kind."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_optim.backends import Bucket, Kind, Launch, Options, Scaler, make_launch
from fused_optim.codecs import Codec
from fused_optim.layout import Row
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


def kind_of(
    row: Row, rule: Rule, codecs: tuple[Codec, ...], backend: str, ema: bool, counts: bool
) -> Kind:
    """What ``row`` must share with others to share a launch."""
    return Kind(
        backend,
        row.columns[0].device,
        rule,
        codecs,
        tuple(column.dtype for column in row.columns),
        row.counters[0].dtype if row.counters else None,
        is_aligned(row.columns),
        ema,
        counts,
    )


class Plan:
    """Keeps the launches, with their device tables, from step to step.

    Nothing is keyed on a tensor's identity and no tensor of the user is kept: rows come anew each
    step, and a launch compares their addresses with those it has uploaded.
    """

    def __init__(self) -> None:
        self.launches: dict[Kind, Launch] = {}
        self.stalled: list[Tensor] = []

    def step(
        self,
        rows: Sequence[tuple[Kind, Row]],
        options: Sequence[Options],
        measure: bool,
        scaler: Scaler,
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
        launches = self._bind(rows, options)
        if not launches:
            return None
        partials = _partials(launches) if measure else {}
        device = rows[0][0].device
        report: Tensor | None = torch.empty(3, dtype=torch.float64, device=device)
        answer = report
        for kind, launch in launches.items():
            launch.begin(partials.get(kind.device), report, _on(kind.device, scaler))
            report = None  # one is enough
        counts = [launch.update() for launch in launches.values()]
        self.stalled = [count for count in counts if count is not None]
        for _, row in rows:
            for tensor, copy in row.copies:
                tensor.copy_(copy)
        # autograd must see that saved parameters have changed; a kernel does not tell it
        torch.autograd.graph.increment_version([row.columns[0] for _, row in rows])
        return answer

    def _bind(
        self, rows: Sequence[tuple[Kind, Row]], options: Sequence[Options]
    ) -> dict[Kind, Launch]:
        """Give each launch its rows of this step; launches without rows are dropped."""
        buckets: dict[Kind, Bucket] = {}
        members: dict[tuple[Kind, int], int] = {}
        for kind, row in rows:
            bucket = buckets.setdefault(kind, Bucket())
            key = (kind, row.group)
            if key not in members:
                members[key] = len(bucket.options)
                bucket.options.append(options[row.group])
            bucket.rows.append(row)
            bucket.members.append(members[key])
        self.launches = {kind: self.launches.get(kind) or make_launch(kind) for kind in buckets}
        for kind, bucket in buckets.items():
            self.launches[kind].bind(bucket)
        return self.launches


def _on(device: torch.device, scaler: Scaler) -> Scaler:
    return Scaler(*(None if x is None else x.to(device, non_blocking=True) for x in scaler))


def _partials(launches: dict[Kind, Launch]) -> dict[torch.device, Tensor]:
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
        for device in dict.fromkeys(kind.device for kind in launches)
    }
