"""Sums over the ranks that share parameters: of the norm, of flags, and of a rule's reduction.

Each element of a sharded tensor counts once: the sums of its shards are added over the process
groups that shard it, and over no group that has replicas. All ranks of a group must take part in
every step, also a rank whose parameters have no gradient, so what is added is derived from all
parameters of the optimizer, in their order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_optim.backends.sums import total
from fused_optim.dtensors import sharding_groups

ProcessGroup = Any


class RankSums:
    """The additions over ranks that the steps of one optimizer need.

    Attributes:
        norm_group: process group over which the norm is summed as well, or None.
    """

    def __init__(
        self, params: Iterable[tuple[Tensor, int]], norm_group: ProcessGroup | None
    ) -> None:
        """Read the process groups of the parameters.

        Args:
            params: each parameter, with the number of sums that its rule needs over it, or 0.
            norm_group: process group for what tensors do not tell, or None.
        """
        self.norm_group = norm_group
        self._groups: dict[str, ProcessGroup] = {}
        # row of each set of groups in the table of the norm, in the order of the parameters
        self._sets: dict[tuple[str, ...], int] = {}
        self._names: list[tuple[str, ...]] = []
        self._num_sums = 0
        self._indices: dict[tuple[int, ...], Tensor] = {}
        found: dict[Any, tuple[str, ...]] = {}
        for param, num_sums in params:
            names = self._read_groups(param, found)
            self._sets.setdefault(names, len(self._sets))
            self._names.append(names if num_sums else ())
            self._num_sums = max(self._num_sums, num_sums if names else 0)

    def _read_groups(self, param: Any, found: dict[Any, tuple[str, ...]]) -> tuple[str, ...]:
        key = (getattr(param, "device_mesh", None), getattr(param, "placements", None))
        if key not in found:
            groups = {group.group_name: group for group in sharding_groups(param)}
            self._groups.update(groups)
            found[key] = tuple(sorted(groups))
        return found[key]

    @property
    def needed(self) -> bool:
        """True if any sum is over more than this rank."""
        return bool(self._groups) or self.norm_group is not None

    def sum_norm(
        self,
        partials: Sequence[tuple[tuple[str, ...], Tensor]],
        found_inf: Tensor | None,
        device: torch.device,
    ) -> Tensor:
        """Return the sums over all ranks, float64 [1, 3], the same bits on every rank.

        The entries are the sum of the squares of all gradients, a flag that is not 0 after an Inf
        or NaN, and one that is not 0 if ``found_inf`` is on any rank.

        Args:
            partials: partial sums of rows, float64 [n, 2], with the names of the groups that shard
                the rows.
            found_inf: flag of a GradScaler on this rank, or None.
            device: device of the result.
        """
        table = torch.zeros(max(1, len(self._sets)), 3, dtype=torch.float64, device=device)
        for names, part in partials:
            if part.device.type != "meta" and len(part):
                table[self._sets[names], :2] += total(part).to(device)
        if found_inf is not None:
            table[:, 2] = (found_inf.squeeze() != 0).to(device, torch.float64)
        for name in sorted(self._groups):
            self._add_over(name, table, [i for names, i in self._sets.items() if name in names])
        whole = total(table)[None].clone()
        if self.norm_group is not None:
            torch.distributed.all_reduce(whole, group=self.norm_group)
        return whole

    def sum_rows(
        self, parts: Sequence[tuple[Sequence[int], Tensor]], device: torch.device
    ) -> Tensor:
        """Return the sums over each whole parameter, float64 [parameters, sums].

        Args:
            parts: sums over the local elements, float64 [rows, sums], with the index of the
                parameter of each row.
            device: device of the result.
        """
        shape = (len(self._names), self._num_sums)
        table = torch.zeros(shape, dtype=torch.float64, device=device)
        for indices, part in parts:
            filled = torch.nn.functional.pad(part.to(device), (0, shape[1] - part.shape[1]))
            table.index_copy_(0, self._index(indices, device), filled)
        for name in sorted(self._groups):
            self._add_over(name, table, [i for i, own in enumerate(self._names) if name in own])
        return table

    def select_rows(self, table: Tensor, rows: Sequence[int], device: torch.device) -> Tensor:
        """Return these rows of ``table`` on ``device``."""
        return table.index_select(0, self._index(rows, table.device)).to(device)

    @property
    def sums_rows(self) -> bool:
        """True if a rule needs sums over parameters that are sharded."""
        return self._num_sums > 0

    def _add_over(self, name: str, table: Tensor, rows: list[int]) -> None:
        """Add these rows of ``table`` over the ranks of a group."""
        if rows:
            index = self._index(rows, table.device)
            part = table.index_select(0, index)
            torch.distributed.all_reduce(part, group=self._groups[name])
            table.index_copy_(0, index, part)

    def _index(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """Return ``rows`` as a tensor; it is stored, as its upload waits for the device."""
        key = tuple(rows)
        if key not in self._indices:
            self._indices[key] = torch.tensor(key, dtype=torch.int64, device=device)
        return self._indices[key]
