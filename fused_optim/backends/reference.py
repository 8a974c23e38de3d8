"""The reference backend: plain torch operations on pieces that fit in the cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fused_optim.backends import small_tensors
from fused_optim.backends.base import AmpState, Bucket, BucketKey, BucketRunner, GroupOptions
from fused_optim.backends.norm_report import form_report, reduce_partials
from fused_optim.backends.rows import NoiseKey, Row
from fused_optim.backends.small_tensors import Columns, FlatBufferPool
from fused_optim.backends.sums import WIDTH, Sum
from fused_optim.formats.stochastic_rounding import make_row_keys, random_bits
from fused_optim.kernels.signatures import CommonOptions, CommonScalars
from fused_optim.rules.common import (
    cautious_decay,
    clip_factor,
    ema_update,
    preprocess_grad,
)

CHUNK = WIDTH  # elements per thread: torch splits work into parts of at least half as many
WHOLE = 1 << 62  # more elements than any tensor has, so that no tensor is split
# indices of the common scalars that rows of one batch share: all but the random keys
_SHARED = [i for i, name in enumerate(CommonScalars._fields) if not name.startswith("key")]


class Scalars(NamedTuple):
    """The scalars that the rows of one batch share.

    Attributes:
        common: common scalars, 0-dim tensors; ``max_grad_value``, ``l2`` and ``l1`` are floats.
        rule: scalars of the rule, an instance of ``rule.scalars`` with 0-dim tensors.
    """

    common: CommonScalars
    rule: Any


class Piece(NamedTuple):
    """Consecutive elements of one row, or several small rows one after the other.

    Attributes:
        columns: at most a chunk of each column.
        start: index of the first element in its row.
        restore: function that copies the values back to the rows.
    """

    columns: Columns
    start: int
    restore: Callable[[], None]


class ReferenceRunner(BucketRunner):
    """A runner by torch operations.

    On a device other than the CPU it synchronizes where it must read a value: to skip, and to read
    an option that is a tensor on the device.
    """

    def __init__(self, key: BucketKey) -> None:
        self.key = key
        self.on_cpu = key.device.type == "cpu" and key.has_data
        self.spans = [slice(*ends) for ends in zip(key.first, key.first[1:], strict=False)]
        # rows with different random keys, or with scales of blocks, cannot be packed
        self.can_pack = self.on_cpu and not key.stochastic
        self.buffers = FlatBufferPool(key.device)

    @property
    def chunk(self) -> int:
        """Maximum number of elements of a piece."""
        if not self.key.has_data:
            return WHOLE  # a tensor without data is not split
        return CHUNK * torch.get_num_threads()

    @override
    def bind(self, bucket: Bucket) -> None:
        self.bucket, self.group_of_row = bucket, bucket.group_of_row
        self.buffers.start_step()

    @override
    def rebind(
        self,
        grad_addresses: np.ndarray[Any, Any],
        make_rows: Callable[[], list[Row]],
        options: list[GroupOptions],
    ) -> None:
        self.bind(Bucket(make_rows(), options, self.group_of_row))

    @override
    def norm(self) -> Tensor:
        codec, span = self.key.codecs[1], self.spans[1]
        rows = [row.columns[span] for row in self.bucket.rows]
        blocks = self.key.blocks[span]
        sum_of_squares = self._new_sum(row[0].numel() for row in rows)
        for piece in self._pieces(rows, blocks):
            wide = codec.load(piece.columns, self.key.compute).double()
            sum_of_squares.add(wide * wide)
        squares = sum_of_squares.total()
        bad = torch.zeros_like(squares)
        # on the CPU reading the sum needs no synchronization, and a finite sum has no Inf or NaN
        if not (self.on_cpu and squares.isfinite()):
            for piece in self._pieces(rows, blocks):
                finite = codec.load(piece.columns, self.key.compute).isfinite()
                bad = torch.where(finite.all(), bad, 1.0)
        return torch.stack([squares, bad])[None]

    @override
    def prepare(self, partials: Tensor | None, report: Tensor | None, amp_state: AmpState) -> None:
        rule, rows = self.key.rule, self.bucket.rows
        table = torch.tensor(
            [[float(option) for option in group.flat] for group in self.bucket.options],
            dtype=torch.float64,
            device=self.key.device,
        )
        state = reduce_partials(partials, amp_state, self.key.device)
        norm, bad, unscale, found_inf = state
        if report is not None:
            # the bound, and whether any group skips, are the same in every group
            first = CommonOptions(*table[0, : len(CommonOptions._fields)])
            report.copy_(form_report(state, first.max_grad_norm, first.any_skips))
        values = table[self.group_of_row].unbind(1)
        options = CommonOptions(*values[: len(CommonOptions._fields)])
        hparams = rule.hparams(*values[len(CommonOptions._fields) :])
        self.skips = torch.where(bad, options.skips, 0.0) + found_inf
        any_skips = any(group.common.skips for group in self.bucket.options)
        self.may_skip = amp_state.found_inf is not None or any_skips
        step, scalars = self._advance(hparams)
        key_low, key_high = step, step  # unused without stochastic rounding
        if self.key.stochastic:
            index = torch.tensor([row.noise_key.param_index for row in rows], device=table.device)
            key_low, key_high = make_row_keys(options.seed, step, index)
        common = CommonScalars(
            skip=self.skips,
            ema_weight=torch.where(step == 1, 1.0, 1.0 - options.ema_decay),
            key_low=key_low,
            key_high=key_high,
            factor=options.grad_sign * (clip_factor(norm, options.max_grad_norm) * unscale),
            max_grad_value=options.max_grad_value,
            l2=options.l2,
            l1=options.l1,
        )
        self.common = torch.stack(common, dim=1).to(self.key.compute)
        early = scalars[: rule.num_elementwise_scalars]
        # a rule may have no scalars but those of its reduction
        self.early = torch.stack(early, dim=1).to(self.key.compute)

    def _advance(self, hparams: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Advance the 0-dim states of rows that are not skipped; return steps and scalars."""
        rule = self.key.rule
        if not rule.scalar_state:
            step = torch.ones_like(self.skips)
            return step, rule.form_scalars(hparams, step)
        rows = [row.scalar_state for row in self.bucket.rows]
        buffer = self.buffers.get(rows)
        restore = buffer.fill(rows)
        # copies: the scalars may alias these, and the buffer is written below
        step, *old = [column.to(torch.float64, copy=True) for column in buffer.columns]
        step += float(self.key.advances)
        if old:
            running, scalars = rule.form_scalars(hparams, step, tuple(old))
        else:
            running, scalars = (), rule.form_scalars(hparams, step)
        for column, after in zip(buffer.columns, (step, *running), strict=True):
            column.copy_(torch.where(self.skips == 0, after.to(column.dtype), column))
        restore()
        return step, scalars

    @override
    def sum_rows(self) -> Tensor:
        rows = enumerate(self.bucket.rows)
        sums = [torch.stack(self._sums(row.columns, self._row_scalars(i))) for i, row in rows]
        return torch.stack(sums)

    @override
    def update(self, sums: Tensor | None = None, numels: list[int] | None = None) -> Tensor | None:
        self.sums, self.whole_numels = sums, numels
        counts = [torch.zeros((), dtype=torch.int64, device=self.key.device)]
        for rows, scalars in self._batches():
            for piece in self._pieces([row.columns for row in rows], self.key.blocks):
                count = self._update_piece(piece, scalars, rows[0].noise_key)
                counts += [] if count is None else [count]
                piece.restore()
        del self.bucket  # release the references to the gradients
        return torch.stack(counts) if self.key.count_stalled else None

    def _batches(self) -> Iterator[tuple[list[Row], Scalars]]:
        """Yield rows that share all scalars, with these scalars; omit skipped rows."""
        batches: dict[Any, list[int]] = {}
        for i, shared in enumerate(zip(self.group_of_row, self._shared_bits(), strict=True)):
            batches.setdefault(shared, []).append(i)
        if self.may_skip and self.key.has_data:
            skips = self.skips.tolist()
            active = ((key, [i for i in rows if not skips[i]]) for key, rows in batches.items())
            batches = {key: rows for key, rows in active if rows}
        for indices in batches.values():
            scalars = self._row_scalars(indices[0])
            if self.key.rule.reduction is not None:
                scalars = self._finalize(indices[0], scalars)
            yield [self.bucket.rows[i] for i in indices], scalars

    def _row_scalars(self, i: int) -> Scalars:
        """Return the scalars of row ``i`` that do not depend on sums."""
        common = CommonScalars(*self.common[i].unbind())
        common = common._replace(**self._optional_terms(self.group_of_row[i]))
        return Scalars(common, self.key.rule.scalars(*self.early[i].unbind()))

    def _shared_bits(self) -> Sequence[Any]:
        """Return for each row a key that is equal for rows that can be updated together."""
        # sums differ between rows; on other devices, comparing values would synchronize
        if not self.can_pack or self.key.rule.reduction is not None:
            return range(len(self.bucket.rows))
        shared = torch.cat([self.common[:, _SHARED], self.early], dim=1).numpy()
        # as bytes: a NaN is not equal to itself
        bits: list[bytes] = shared.view(f"V{shared.shape[1] * shared.itemsize}")[:, 0].tolist()
        return bits

    def _optional_terms(self, group: int) -> dict[str, float]:
        """Return the options of a group that turn a term off, as floats."""
        common = self.bucket.options[group].common
        values = [float(value) for value in (common.max_grad_value, common.l2, common.l1)]
        # rounded as the kernel gets them, so that a term is off for both or for neither
        wide = np.float64 if self.key.compute is torch.float64 else np.float32
        with np.errstate(over="ignore"):
            limit, l2, l1 = np.array(values, wide).tolist()
        return {"max_grad_value": limit, "l2": l2, "l1": l1}

    def _finalize(self, i: int, scalars: Scalars) -> Scalars:
        """Form the scalars of row ``i`` that depend on sums over the whole tensor."""
        rule, compute = self.key.rule, self.key.compute
        assert rule.reduction is not None
        columns = self.bucket.rows[i].columns
        sums: Sequence[Tensor] = (
            self._sums(columns, scalars) if self.sums is None else self.sums[i].unbind()
        )
        whole = columns[0].numel() if self.whole_numels is None else self.whole_numels[i]
        numel = torch.full_like(sums[0], whole)
        early = scalars.rule[: rule.num_elementwise_scalars]
        wide = rule.scalars(*(scalar.double() for scalar in early))
        late = rule.reduction.finalize_fn(sums, numel, wide)[len(early) :]
        return scalars._replace(rule=rule.scalars(*early, *(scalar.to(compute) for scalar in late)))

    def _sums(self, columns: Columns, scalars: Scalars) -> tuple[Tensor, ...]:
        """Return the sum of each term of the reduction over the whole tensor, float64 []."""
        assert self.key.rule.reduction is not None
        count = self.key.rule.reduction.num_sums
        sums = [self._new_sum([columns[0].numel()]) for _ in range(count)]
        for piece in self._pieces([columns], self.key.blocks):
            for one, term in zip(sums, self._map_piece(piece, scalars), strict=True):
                one.add(term.double())
        return tuple(one.total() for one in sums)

    def _map_piece(self, piece: Piece, scalars: Scalars) -> tuple[Tensor, ...]:
        """Return the terms of the reduction for each element of a piece."""
        reduction = self.key.rule.reduction
        assert reduction is not None
        p, g, *state = self._load_values(piece.columns)
        rule_state = tuple(state[:-1] if self.key.ema else state)
        return reduction.map_fn(p, preprocess_grad(g, p, scalars.common), rule_state, scalars.rule)

    def _new_sum(self, sizes: Iterable[int]) -> Sum:
        """Return a sum, 0 so far, over rows of these sizes."""
        return Sum(sum(sizes), self.key.device)

    def _load_values(self, columns: Columns) -> list[Tensor]:
        return [
            codec.load(columns[span], self.key.compute)
            for codec, span in zip(self.key.codecs, self.spans, strict=True)
        ]

    def _update_piece(self, piece: Piece, scalars: Scalars, key: NoiseKey) -> Tensor | None:
        """Update the elements; return the number of stalled ones, or None if not counted."""
        old, g, *state = self._load_values(piece.columns)
        if self.key.count_stalled:
            old = old.clone()  # it may be a view of the column
        g = preprocess_grad(g, old, scalars.common)
        rule_state = state[:-1] if self.key.ema else state
        p, new_state = self._apply_rule(old, g, tuple(rule_state), scalars.rule)
        if self.key.ema:
            new_state = (*new_state, ema_update(state[-1], p, scalars.common.ema_weight))
        self._store(piece, (p, *new_state), scalars.common, key)
        if not self.key.count_stalled:
            return None
        stored = self.key.codecs[0].load(piece.columns[self.spans[0]], self.key.compute)
        return torch.count_nonzero((p != old) & (stored == old))

    def _apply_rule(
        self, p: Tensor, g: Tensor, state: tuple[Tensor, ...], s: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the parameter and the states after the rule, with decay where it is allowed."""
        if not self.key.cautious:
            return self.key.rule.update(p, g, state, s)
        without = s._replace(decay=torch.zeros_like(s.decay))
        new, state = self.key.rule.update(p, g, state, without)
        return cautious_decay(p, new, s.decay), state

    def _store(
        self, piece: Piece, values: tuple[Tensor, ...], common: CommonScalars, key: NoiseKey
    ) -> None:
        """Store parameter and states, each with different random bits."""
        numel = len(values[0]) if self.key.stochastic else 0
        elements = torch.arange(numel, device=self.key.device) + piece.start
        if key.run:
            elements = elements // key.run * key.stride + elements % key.run
        elements = elements + key.element_offset
        keys = (common.key_low, common.key_high)
        for number, value in zip((0, *range(2, len(self.key.codecs))), values, strict=True):
            codec = self.key.codecs[number]
            noise = partial(random_bits, keys, elements, number) if codec.stochastic else None
            codec.store(piece.columns[self.spans[number]], value, noise)

    def _pieces(self, rows: list[Columns], blocks: Sequence[int]) -> Iterator[Piece]:
        """Yield all elements of the rows in pieces.

        Args:
            rows: columns of each row.
            blocks: number of elements of the value for each element of a column.
        """
        small: list[Columns] = []
        free, size = small_tensors.SIZE, self.chunk
        for row in rows:
            numel = row[0].numel()
            if numel >= small_tensors.MAX_NUMEL or not self.can_pack:
                columns = [column.view(-1) for column in row]
                for start in range(0, numel, size):
                    ends = [(start // n, -(-(start + size) // n)) for n in blocks]
                    parts = [c[a:b] for c, (a, b) in zip(columns, ends, strict=True)]
                    yield Piece(tuple(parts), start, _no_copy_back)
            elif numel > free:
                yield self._pack(small)
                small, free = [row], small_tensors.SIZE - numel
            elif numel:
                small.append(row)
                free -= numel
        if small:
            yield self._pack(small)

    def _pack(self, rows: list[Columns]) -> Piece:
        """Return small rows as one piece."""
        if len(rows) == 1:
            return Piece(tuple(column.view(-1) for column in rows[0]), 0, _no_copy_back)
        buffer = self.buffers.get(rows)
        return Piece(buffer.columns, 0, buffer.fill(rows, range(len(rows[0]))[self.spans[1]]))


def _no_copy_back() -> None:
    """Do nothing: a piece that is updated in place needs no copy back."""
