"""The compiled backend: the reference's own pages through ``torch.compile``, one pass, on the CPU.

Neither a size nor the value of an option is in the code: there is one program for each rule, its
formats and the terms of the gradient that are on. torch keeps the code on disk. A new program is
first tried beside the reference, and refused if a bit differs.
"""

import itertools
import types
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_optim.backends import Bucket, Kind, NotCompiled
from fused_optim.backends.packing import Columns
from fused_optim.backends.reference import WHOLE, Piece, ReferenceLaunch, Scalars
from fused_optim.codecs import Codec
from fused_optim.rules.common import Gradient

LEAST = 1 << 15  # elements: for fewer, waking the threads takes longer than the update
CACHED = 1 << 18  # elements: what a program with blocks keeps between its loops stays in cache
BLOCK = 64
TRIED = 1 << 18  # elements: so many that the code is made for every thread
NUMBERS = itertools.count()


class Answer(NamedTuple):
    """What a program returns.

    Attributes:
        result: beside what it did in place.
        is_compiled: whether it ran as compiled code.
    """

    result: Any
    is_compiled: bool


Program = Callable[..., Answer]
SPECIAL = (0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-40, 3e38, 1e-30, 1e30, 1.0)


class Spec(NamedTuple):
    """What a program is compiled for.

    Attributes:
        kind: of the rows.
        on: whether limit, L2 and L1 are.
        threads: their number is in the code.
    """

    kind: Kind
    on: tuple[bool, ...]
    threads: int


class CompiledLaunch(ReferenceLaunch):
    """Rows of one kind: large ones by a program, small ones packed as in the reference.

    The norm is a sum in another order than the reference's, which the number of threads fixes.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.has_blocks = max(kind.blocks) > 1

    @property
    def chunk(self) -> int:
        """Elements of a piece; without blocks a program has no temporaries."""
        return CACHED if self.has_blocks else WHOLE

    def bind(self, bucket: Bucket) -> None:
        """See :class:`~fused_optim.backends.Launch`.

        Raises:
            NotCompiled: with the reason. Nothing has been changed yet.
        """
        super().bind(bucket)
        if max(row.columns[0].numel() for row in bucket.rows) < LEAST:
            return
        for member in range(len(bucket.options)):
            spec = self._spec(self._terms(member))
            updating(spec)
            if self.kind.rule.per_tensor is not None:
                measuring(spec)

    def norm(self) -> Tensor:
        """See :class:`~fused_optim.backends.Launch`."""
        span = self.spans[1]
        kind = self.kind
        threads = torch.get_num_threads()
        sums = [torch.zeros((), dtype=torch.float64)]
        for piece in self._pieces([row.columns[span] for row in self.bucket.rows], (1,)):
            if len(piece.columns[0]) < LEAST:
                wide = kind.codecs[1].load(piece.columns, kind.compute).double()
                sums.append((wide * wide).sum())
            else:
                program = squares(kind.codecs[1], kind.dtypes[span], kind.compute, threads)
                sums.append(program(_plain(piece.columns)).result)
        total = torch.stack(sums).sum()
        if total.isfinite():
            return torch.stack([total, torch.zeros_like(total)])[None]
        reference = ReferenceLaunch(self.kind)  # which tells NaN from a sum that is too large
        reference.bind(self.bucket)
        return reference.norm()

    def _update_piece(self, piece: Piece, scalars: Scalars, offset: int) -> Tensor | None:
        numel = self._compiled_elements(piece)
        spec = self._spec(scalars.gradient[1:])
        counts = []
        if numel:
            head = _part(piece, 0, numel, self.kind)
            start = torch.tensor(offset + head.start)
            counts.append(updating(spec)(_plain(head.columns), _flat(scalars), start).result)
        if numel < len(piece.columns[0]):
            tail = _part(piece, numel, len(piece.columns[0]), self.kind)
            counts.append(super()._update_piece(tail, scalars, offset))
        return torch.stack(counts).sum() if self.kind.counts else None

    def _sums(self, columns: Columns, scalars: Scalars) -> tuple[Tensor, ...]:
        sums = []
        for piece in self._pieces([columns], self.kind.blocks):
            numel = self._compiled_elements(piece)
            if numel:
                head = _part(piece, 0, numel, self.kind)
                program = measuring(self._spec(scalars.gradient[1:]))
                sums.append(program(_plain(head.columns), _flat(scalars)).result)
            if numel < len(piece.columns[0]):
                tail = _part(piece, numel, len(piece.columns[0]), self.kind)
                sums.append(_summed(self._quantities(tail, scalars)))
        return torch.stack(sums).sum(0).unbind()

    def _compiled_elements(self, piece: Piece) -> int:
        """How many elements a program takes, the first ones; the reference has the others."""
        numel = len(piece.columns[0])
        if numel < LEAST:
            return 0
        return numel - numel % BLOCK if self.has_blocks else numel

    def _spec(self, terms: Sequence[Any]) -> Spec:
        limit, l2, l1 = terms
        on = (limit < torch.inf, l2 != 0, l1 != 0)
        kind = self.kind._replace(counter_dtype=None, aligned=False)  # the code is the same
        return Spec(kind, on, torch.get_num_threads())


def _part(piece: Piece, start: int, end: int, kind: Kind) -> Piece:
    """The elements from ``start``, which begins a block, to ``end``."""
    if (start, end) == (0, len(piece.columns[0])):
        return piece
    columns = zip(piece.columns, kind.blocks, strict=True)
    parts = [column[start // n : -(-end // n)] for column, n in columns]
    return piece._replace(columns=tuple(parts), start=piece.start + start)


def _summed(quantities: tuple[Tensor, ...]) -> Tensor:
    """The sums over the elements of a piece, float64 [quantities]."""
    return torch.stack([quantity.double().sum() for quantity in quantities])


def _plain(columns: Columns) -> Columns:
    """The same memory, as torch.compile knows it: no parameter, and no view of another tensor."""
    return tuple(column.detach() for column in columns)


def _flat(scalars: Scalars) -> Tensor:
    """All scalars in one tensor: torch looks at every argument of a compiled function."""
    factor, *terms = scalars.gradient
    tensors = [torch.as_tensor(term, dtype=factor.dtype) for term in terms]
    return torch.stack([factor, *tensors, scalars.average, *scalars.keys, *scalars.rule])


def _unflat(flat: Tensor, spec: Spec, record: Callable[[list[Tensor]], Any]) -> Scalars:
    """The scalars; what is a term of the gradient and off is a number, and so not in the code."""
    factor, limit, l2, l1, average, first, second, *h = flat.unbind()
    has_limit, has_l2, has_l1 = spec.on
    terms = (limit if has_limit else torch.inf, l2 if has_l2 else 0.0, l1 if has_l1 else 0.0)
    return Scalars(Gradient(factor, *terms), record(h), average, (first, second))


def _nothing() -> None:
    """A piece that is a row's has no way back."""


# ---- programs


def compiled(function: Program) -> Program:
    """``function`` through torch.compile, for all sizes."""
    # torch limits how often one code object is compiled: each program has its own
    name = f"{function.__name__}_{next(NUMBERS)}"
    code = function.__code__.replace(co_name=name)
    own = types.FunctionType(code, function.__globals__, name, None, function.__closure__)
    # casts to a narrower dtype and back are a rounding, not nothing
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "cpp.dynamic_threads": False,
        "emulate_precision_casts": True,
    }
    program: Program = torch.compile(own, fullgraph=True, dynamic=True, options=options)
    return program


@cache
def squares(
    codec: Codec, dtypes: tuple[torch.dtype, ...], compute: torch.dtype, threads: int
) -> Program:
    """``columns of the gradient -> sum of squares``, float64."""

    def norm(columns: Columns) -> Answer:
        wide = codec.load(columns, compute).double()
        return Answer((wide * wide).sum(), torch.compiler.is_compiling())

    program = compiled(norm)
    eighths = (torch.arange(TRIED) % 255 - 127) / 8.0  # the sum of their squares is exact
    columns = tuple(eighths.to(dtype) for dtype in dtypes)
    tried(program, norm, (columns,))
    return program


@cache
def updating(spec: Spec) -> Program:
    """``(columns, scalars, start) -> count``, in place."""
    kind, launch = spec.kind, ReferenceLaunch(spec.kind)

    def update(columns: Columns, flat: Tensor, start: Tensor) -> Answer:
        scalars = _unflat(flat, spec, kind.rule.h._make)
        count = launch._update_piece(Piece(columns, start, _nothing), scalars, 0)
        return Answer(count, torch.compiler.is_compiling())

    program = compiled(update)
    for seed in range(3):
        scalars = sample_scalars(len(kind.rule.h._fields), kind.compute, seed)
        tried(program, update, (sample(kind, seed), scalars, torch.tensor(2**33 + BLOCK)))
    return program


@cache
def measuring(spec: Spec) -> Program:
    """``(columns, scalars) -> sums``: see :class:`~fused_optim.rules.common.PerTensor`."""
    kind, launch = spec.kind, ReferenceLaunch(spec.kind)

    def measure(columns: Columns, flat: Tensor) -> Answer:
        scalars = _unflat(flat, spec, tuple)
        sums = _summed(launch._quantities(Piece(columns, 0, _nothing), scalars))
        return Answer(sums, torch.compiler.is_compiling())

    program = compiled(measure)
    columns = sample(kind, 0, special=False)  # their sums would be NaN whatever is measured
    tried(program, measure, (columns, sample_scalars(kind.rule.early, kind.compute, 0)))
    return program


# ---- trials


def tried(program: Program, function: Program, arguments: tuple[Any, ...]) -> None:
    """Compile ``program``, and see that it does what ``function`` does.

    Raises:
        NotCompiled: with the reason.
    """
    name = function.__name__
    columns = arguments[0]
    expected_columns = tuple(column.clone() for column in columns)
    expected = function(expected_columns, *arguments[1:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            actual = program(*arguments)
    # the compiler, torch's part of it, the disk: whatever it is, the caller gets the reason
    except Exception as error:
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {str(cause).strip().split(chr(10))[0]}"
        raise NotCompiled(f"torch.compile failed on {name}: {reason}") from error
    if not actual.is_compiled:
        raise NotCompiled("torch.compile is switched off")
    for i, pair in enumerate(zip(columns, expected_columns, strict=True)):
        count = different(*pair)
        if count:
            raise NotCompiled(f"torch.compile gives other bits: {name}, {count} in column {i}")
    # sums of float64, whose order is free, or a count
    if actual.result is not None and not torch.allclose(actual.result, expected.result, 1e-9, 0):
        raise NotCompiled(f"torch.compile gives another sum: {name}")


def different(actual: Tensor, expected: Tensor) -> int:
    """How many elements differ in a bit; one NaN is as good as another."""
    if actual.dtype.is_floating_point and actual.itemsize > 1:
        same = (actual == expected) & (actual.signbit() == expected.signbit())
        return int((~(same | (actual.isnan() & expected.isnan()))).sum())
    return int((actual.view(torch.uint8) != expected.view(torch.uint8)).sum())


def sample(kind: Kind, seed: int, special: bool = True) -> Columns:
    """Columns of TRIED elements: of all sizes, infinities, NaN, any bits; or not ``special``."""
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for dtype, block in zip(kind.dtypes, kind.blocks, strict=True):
        numel = TRIED // block
        if dtype.is_floating_point and dtype.itemsize > 1:
            values = torch.randn(numel, generator=generator, dtype=torch.float64)
            if not special:
                values.abs_()  # as some states are
            else:
                values *= 10.0 ** (3 * torch.randn(numel, generator=generator))
                where = torch.randperm(numel, generator=generator)[: numel // 16]
                values[where] = torch.tensor(SPECIAL).double().repeat(numel // 16)[: numel // 16]
            columns.append(values.to(dtype))
        else:
            size = (numel * dtype.itemsize,)
            largest = 256 if special else 64  # these are finite in every format
            bits = torch.randint(largest, size, generator=generator, dtype=torch.uint8)
            columns.append(bits.view(dtype))
    return tuple(columns)


def sample_scalars(count: int, compute: torch.dtype, seed: int) -> Tensor:
    """As :func:`_flat` has them; the last seed has those that rules compare with."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.rand(count, generator=generator, dtype=torch.float64)
    terms = torch.tensor([0.7, 0.9, 0.1, 0.2], dtype=torch.float64)
    h = h.round() if seed == 2 else h
    average = h.new_tensor([1.0 if seed == 2 else 0.25])
    keys = torch.randint(1 << 24, (2,), generator=generator)
    return torch.cat([terms, average, keys, h]).to(compute)
