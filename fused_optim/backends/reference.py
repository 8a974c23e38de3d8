"""The reference backend: plain torch, in pieces that stay in cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fused_optim.backends.base import COMMON_OPTIONS, Bucket, BucketKey, Options, AmpState, packing
from fused_optim.backends.small_tensors import Columns, FlatBufferPool
from fused_optim.backends.sums import WIDTH, Sum, total
from fused_optim.step.rows import Row
from fused_optim.formats.stochastic_rounding import random_bits, make_row_keys
from fused_optim.rules.common import Gradient, ema_update, clip_factor, gradient, sqrt_rn

CHUNK = WIDTH  # elements a thread, which torch gives no fewer than half of these
WHOLE = 1 << 62  # elements: what is never cut


class Scalars(NamedTuple):
    """What rows of one batch share."""

    gradient: Gradient
    rule: Any
    average: Tensor
    keys: tuple[Tensor, Tensor]


class Piece(NamedTuple):
    """Consecutive elements of one row, or several small rows one after the other.

    Attributes:
        columns: at most a chunk of each.
        start: the first element in its row.
        restore: brings the values back to the rows.
    """

    columns: Columns
    start: int
    restore: Callable[[], None]


class ReferenceRunner:
    """Rows of one kind.

    On a device other than the CPU it waits for that where it must see a value: to skip, and to read
    an option that is a tensor there.
    """

    def __init__(self, key: BucketKey) -> None:
        self.key = key
        self.on_cpu = key.device.type == "cpu"
        self.spans = [slice(*ends) for ends in zip(key.first, key.first[1:], strict=False)]
        # rows of one key, or of whole blocks, cannot be packed into one
        self.can_pack = self.on_cpu and not key.stochastic
        self.packs = FlatBufferPool(key.device)

    @property
    def chunk(self) -> int:
        """Elements of a piece."""
        if self.key.device.type == "meta":
            return WHOLE  # what has no data needs no cache
        return CHUNK * torch.get_num_threads()

    def bind(self, bucket: Bucket) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        self.bucket, self.members = bucket, bucket.members
        self.packs.begin()

    def rebind(
        self,
        gradients: np.ndarray[Any, Any],
        rows: Callable[[], list[Row]],
        options: list[Options],
    ) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        self.bind(Bucket(rows(), options, self.members))

    def norm(self) -> Tensor:
        """See :class:`~fused_optim.backends.Launch`."""
        codec, span = self.key.codecs[1], self.spans[1]
        rows = [row.columns[span] for row in self.bucket.rows]
        blocks = self.key.blocks[span]
        sum_of_squares = self._new_sum(row[0].numel() for row in rows)
        for piece in self._pieces(rows, blocks):
            wide = codec.load(piece.columns, self.key.compute).double()
            sum_of_squares.add(wide * wide)
        squares = sum_of_squares.total()
        bad = torch.zeros_like(squares)
        # on the CPU a look at the sum is free, and a finite one has no Inf or NaN in it
        if not (self.on_cpu and squares.isfinite()):
            for piece in self._pieces(rows, blocks):
                finite = codec.load(piece.columns, self.key.compute).isfinite()
                bad = torch.where(finite.all(), bad, 1.0)
        return torch.stack([squares, bad])[None]

    def begin(self, partials: Tensor | None, report: Tensor | None, scaler: AmpState) -> None:
        """See :class:`~fused_optim.backends.Launch`."""
        options = torch.tensor(
            [[float(option) for option in group] for group in self.bucket.options],
            dtype=torch.float64,
            device=self.key.device,
        )
        norm, bad, unscale, found = self._known(partials, scaler)
        if report is not None:
            factor = clip_factor(norm, options[0, 1])
            report.copy_(torch.stack([norm, factor, bad * options[0, 6] + found]))
        rows = options[self.bucket.members].unbind(1)
        factors = rows[0] * (clip_factor(norm, rows[1]) * unscale)
        self.skips = torch.where(bad, rows[5], 0.0) + found
        self.may_skip = scaler.found_inf is not None or any(o[5] for o in self.bucket.options)
        step, h = self._advance(self.key.rule.hparams(*rows[len(COMMON_OPTIONS) :]))
        average = torch.where(step == 1, 1.0, 1.0 - rows[7])
        keys = (step, step)  # of no use
        if self.key.stochastic:
            index = [row.place.number for row in self.bucket.rows]
            keys = make_row_keys(rows[8], step, torch.tensor(index, device=self.key.device))
        self.scalars = torch.stack([average, factors, *keys, *h], dim=1).to(self.key.compute)

    def _known(self, partials: Tensor | None, scaler: AmpState) -> tuple[Tensor, ...]:
        """Norm, whether a gradient is Inf or NaN, what unscales, whether the scaler skips."""
        norm = torch.full((), torch.nan, dtype=torch.float64, device=self.key.device)
        bad = torch.zeros((), dtype=torch.bool, device=self.key.device)
        if partials is not None:
            squares, nonfinite = total(partials)
            norm, bad = sqrt_rn(squares), nonfinite != 0
        unscale, found = torch.ones_like(norm), torch.zeros_like(norm)
        if scaler.scale is not None:
            unscale = 1.0 / scaler.scale.squeeze().double()
        if scaler.found_inf is not None:
            found = (scaler.found_inf.squeeze() != 0).double()
        return norm * unscale, bad, unscale, found

    def _advance(self, hparams: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Move the counters of the rows that are not skipped, and form step and scalars."""
        rule = self.key.rule
        if not rule.scalar_state:
            step = torch.ones_like(self.skips)
            return step, tuple(rule.scalars(hparams, step))
        rows = [row.scalar_state for row in self.bucket.rows]
        pack = self.packs.pack(rows)
        restore = pack.fill(rows)
        # copies: scalars may be one of these, and the pack is written below
        step, *old = [column.to(torch.float64, copy=True) for column in pack.columns]
        step += 1.0
        if old:
            running, h = rule.scalars(hparams, step, tuple(old))
        else:
            running, h = (), rule.scalars(hparams, step)
        for column, after in zip(pack.columns, (step, *running), strict=True):
            column.copy_(torch.where(self.skips == 0, after.to(column.dtype), column))
        restore()
        return step, tuple(h)

    def update(self) -> Tensor | None:
        """See :class:`~fused_optim.backends.Launch`."""
        counts = [torch.zeros((), dtype=torch.int64, device=self.key.device)]
        for rows, scalars in self._batches():
            for piece in self._pieces([row.columns for row in rows], self.key.blocks):
                count = self._update_piece(piece, scalars, rows[0].place.offset)
                counts += [] if count is None else [count]
                piece.restore()
        del self.bucket  # the gradients are not ours to keep
        return torch.stack(counts) if self.key.counts else None

    def _batches(self) -> Iterator[tuple[list[Row], Scalars]]:
        """Rows that share all scalars, with those; skipped rows are left out."""
        groups: dict[Any, list[int]] = {}
        for i, key in enumerate(zip(self.bucket.members, self._unique(), strict=True)):
            groups.setdefault(key, []).append(i)
        # a meta tensor has no value
        if self.may_skip and self.key.device.type != "meta":
            skips = self.skips.tolist()
            left = ((key, [i for i in rows if not skips[i]]) for key, rows in groups.items())
            groups = {key: rows for key, rows in left if rows}
        for (member, _), rows in groups.items():
            average, factor, first, second, *h = self.scalars[rows[0]].unbind()
            scalars = Scalars(
                Gradient(factor, *self._terms(member)), tuple(h), average, (first, second)
            )
            if self.key.rule.reduction is not None:
                late = self._measured(self.bucket.rows[rows[0]].columns, scalars)
                scalars = scalars._replace(rule=(*h, *late))
            rule = self.key.rule.h._make(scalars.rule)
            yield [self.bucket.rows[i] for i in rows], scalars._replace(rule=rule)

    def _unique(self) -> Sequence[Any]:
        """For each row what it shares with all rows that may be in one batch with it."""
        # what is measured differs from row to row; elsewhere than on the CPU values are waited for
        if not self.can_pack or self.key.rule.reduction is not None:
            return range(len(self.bucket.rows))
        # without the two keys of stochastic rounding, which no two rows share
        shared = torch.cat([self.scalars[:, :2], self.scalars[:, 4:]], dim=1).numpy()
        # as bytes: a NaN is not equal to itself
        bits: list[bytes] = shared.view(f"V{shared.shape[1] * shared.itemsize}")[:, 0].tolist()
        return bits

    def _terms(self, member: int) -> list[float]:
        """Limit, L2 and L1 of a group."""
        # rounded as the kernel gets them, so that a term is off for both or for neither
        options = [float(option) for option in self.bucket.options[member][2:5]]
        rounded: list[float] = torch.tensor(options, dtype=self.key.compute, device="cpu").tolist()
        return rounded

    def _measured(self, columns: Columns, scalars: Scalars) -> list[Tensor]:
        """The scalars that depend on sums over the whole tensor."""
        rule = self.key.rule
        assert rule.reduction is not None
        sums = self._sums(columns, scalars)
        numel = torch.full_like(sums[0], columns[0].numel())
        num_elementwise_scalars = tuple(scalar.double() for scalar in scalars.rule)
        late = rule.reduction.finish(sums, numel, num_elementwise_scalars)
        return [scalar.to(self.key.compute) for scalar in late]

    def _sums(self, columns: Columns, scalars: Scalars) -> tuple[Tensor, ...]:
        """The sum of each quantity over the whole tensor, float64 []."""
        assert self.key.rule.reduction is not None
        count = self.key.rule.reduction.num_sums
        sums = [self._new_sum([columns[0].numel()]) for _ in range(count)]
        for piece in self._pieces([columns], self.key.blocks):
            for one, quantity in zip(sums, self._quantities(piece, scalars), strict=True):
                one.add(quantity.double())
        return tuple(one.total() for one in sums)

    def _quantities(self, piece: Piece, scalars: Scalars) -> tuple[Tensor, ...]:
        """What the rule measures, of each element of a piece."""
        reduction = self.key.rule.reduction
        assert reduction is not None
        p, g, *state = self._loaded(piece.columns)
        own = tuple(state[:-1] if self.key.ema else state)
        return reduction.measure(p, gradient(g, p, scalars.gradient), own, scalars.rule)

    def _new_sum(self, sizes: Iterable[int]) -> Sum:
        """A sum over rows of these sizes."""
        return Sum(sum(sizes), self.key.device)

    def _loaded(self, columns: Columns) -> list[Tensor]:
        return [
            codec.load(columns[span], self.key.compute)
            for codec, span in zip(self.key.codecs, self.spans, strict=True)
        ]

    def _update_piece(self, piece: Piece, scalars: Scalars, offset: int) -> Tensor | None:
        """Update the elements; if ``kind.counts``, how many of them rounding leaves alone."""
        old, g, *state = self._loaded(piece.columns)
        if self.key.counts:
            old = old.clone()  # which may be the column itself
        g = gradient(g, old, scalars.gradient)
        own = state[:-1] if self.key.ema else state
        p, new_state = self.key.rule.update(old, g, tuple(own), scalars.rule)
        if self.key.ema:
            new_state = (*new_state, ema_update(state[-1], p, scalars.average))
        self._store(piece, (p, *new_state), scalars.keys, offset)
        if not self.key.counts:
            return None
        kept = self.key.codecs[0].load(piece.columns[self.spans[0]], self.key.compute)
        return torch.count_nonzero((p != old) & (kept == old))

    def _store(
        self, piece: Piece, values: tuple[Tensor, ...], keys: tuple[Tensor, Tensor], offset: int
    ) -> None:
        """Write parameter and states; each value has random bits of its own."""
        start, numel = offset + piece.start, len(values[0]) if self.key.stochastic else 0
        elements = torch.arange(numel, device=self.key.device) + start
        for number, value in zip((0, *range(2, len(self.key.codecs))), values, strict=True):
            codec = self.key.codecs[number]
            noise = partial(random_bits, keys, elements, number) if codec.stochastic else None
            codec.store(piece.columns[self.spans[number]], value, noise)

    def _pieces(self, rows: list[Columns], blocks: Sequence[int]) -> Iterator[Piece]:
        """The elements of all rows; ``blocks``: those for each element of a column."""
        small: list[Columns] = []
        room, size = packing.SIZE, self.chunk
        for row in rows:
            numel = row[0].numel()
            if numel >= packing.SMALL or not self.can_pack:
                columns = [column.view(-1) for column in row]
                for start in range(0, numel, size):
                    ends = [(start // n, -(-(start + size) // n)) for n in blocks]
                    parts = [c[a:b] for c, (a, b) in zip(columns, ends, strict=True)]
                    yield Piece(tuple(parts), start, _no_copy_back)
            elif numel > room:
                yield self._packed(small)
                small, room = [row], packing.SIZE - numel
            elif numel:
                small.append(row)
                room -= numel
        if small:
            yield self._packed(small)

    def _packed(self, rows: list[Columns]) -> Piece:
        """Small rows as one piece."""
        if len(rows) == 1:
            return Piece(tuple(column.view(-1) for column in rows[0]), 0, _no_copy_back)
        pack = self.packs.pack(rows)
        return Piece(pack.columns, 0, pack.fill(rows, range(len(rows[0]))[self.spans[1]]))


def _no_copy_back() -> None:
    """What is updated in place needs no way back."""
