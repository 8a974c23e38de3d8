"""The types that the step shares with its backends, and the protocol :class:`BucketRunner`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fused_optim.backends.rows import Row
from fused_optim.formats.codecs import Codec
from fused_optim.kernels.signatures import CommonOptions
from fused_optim.rules.common import Rule


class GroupOptions(NamedTuple):
    """The options of one parameter group: floats, or tensors on an accelerator.

    Attributes:
        common: options that every rule has.
        hparams: hyperparameters of the group's rule, an instance of ``rule.hparams``.
        second: options of the second pass of a rule with a step on matrices, or None.
    """

    common: CommonOptions
    hparams: Any
    second: Any = None

    @property
    def flat(self) -> tuple[float | Tensor, ...]:
        """All options in the order in which kernels read them."""
        return (*self.common, *self.hparams)


class AmpState(NamedTuple):
    """The tensors of a ``torch.amp.GradScaler``, for unscaling and skipping in the step.

    Attributes:
        grad_scale: factor by which the loss was scaled, float32 [1]; None if the gradients are
            unscaled already.
        found_inf: flag that is not 0 if the step must be skipped, float32 [1]; None if unknown.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


class BucketKey(NamedTuple):
    """The properties that rows must share to be updated in one launch.

    Attributes:
        backend: ``"triton"``, ``"native"`` or ``"reference"``.
        device: device of all columns.
        rule: update rule.
        codecs: storage formats of parameter, gradient and states.
        dtypes: dtype of each column.
        scalar_state_dtype: dtype of the 0-dim states; None if the rule has none.
        aligned: True if every address allows accesses of 16 bytes in the widest column.
        ema: True if the last value is the exponential moving average of the parameter.
        count_stalled: True to count the elements that rounding leaves unchanged.
        has_data: False for tensors on the meta device and those of FakeTensorMode.
        strided: True if the elements of a row are not consecutive in the whole parameter, and
            stochastic rounding needs their indices there.
        sharded_over: names of the process groups over which the parameters are sharded.
        cautious: True to decay where the update agrees only.
        advances: False if another bucket of the same parameters advances their 0-dim states.
        exchanged: True if ranks share the matrices that the rule transforms whole, so that the step
            transforms them, not the runner.
    """

    backend: str
    device: torch.device
    rule: Rule
    codecs: tuple[Codec, ...]
    dtypes: tuple[torch.dtype, ...]
    scalar_state_dtype: torch.dtype | None
    aligned: bool
    ema: bool = False
    count_stalled: bool = False
    has_data: bool = True
    strided: bool = False
    sharded_over: tuple[str, ...] = ()
    cautious: bool = False
    advances: bool = True
    exchanged: bool = False

    @property
    def compute(self) -> torch.dtype:
        """Dtype of the arithmetic: float64 for float64 parameters, else float32."""
        return torch.float64 if self.dtypes[0] is torch.float64 else torch.float32

    @property
    def first(self) -> tuple[int, ...]:
        """First column of each value, and at the end the number of columns."""
        return tuple(accumulate((len(codec.columns) for codec in self.codecs), initial=0))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of elements of the value for each element of a column."""
        return tuple(column.block for codec in self.codecs for column in codec.columns)

    @property
    def table_width(self) -> int:
        """Number of entries of a row in the table of :func:`~fused_optim.kernels.update.update`."""
        return 2 + len(self.dtypes) + 2 * self.strided

    @property
    def stochastic(self) -> bool:
        """True if any value is rounded stochastically."""
        return any(codec.stochastic for codec in self.codecs)

    @property
    def bytes_moved(self) -> float:
        """Bytes per element that the update reads and writes; the gradient is only read."""
        specs = [column for codec in self.codecs for column in codec.columns]
        sizes = [d.itemsize / spec.block for d, spec in zip(self.dtypes, specs, strict=True)]
        moved = sum(size * spec.accesses for size, spec in zip(sizes, specs, strict=True))
        return moved - sizes[self.first[1]]

    @property
    def vector(self) -> int:
        """Number of elements for which every address is aligned: 16 bytes of the widest column."""
        return 16 // max(dtype.itemsize for dtype in self.dtypes) if self.aligned else 1


@dataclass
class Bucket:
    """The rows of one step that share a :class:`BucketKey`.

    Attributes:
        rows: one row for each parameter.
        options: options of each parameter group that has rows in the bucket.
        group_of_row: index into ``options`` for each row.
    """

    rows: list[Row] = field(default_factory=list)
    options: list[GroupOptions] = field(default_factory=list)
    group_of_row: list[int] = field(default_factory=list)


class CompileError(RuntimeError):
    """An error of compiling a kernel, raised before any tensor is changed."""


class BucketRunner(Protocol):
    """A runner that updates all rows of one bucket, and reuses its tables in later steps."""

    def bind(self, bucket: Bucket) -> None:
        """Set the rows and options of this step.

        Raises:
            CompileError: a kernel cannot be compiled. No tensor has been changed then.
        """

    def rebind(
        self,
        grad_addresses: "np.ndarray[Any, Any]",
        make_rows: Callable[[], list[Row]],
        options: list[GroupOptions],
    ) -> None:
        """Reuse the rows of the last step, with new addresses of gradients.

        Args:
            grad_addresses: address of the gradient of each row, int64 [rows].
            make_rows: function that returns the rows, for a backend that needs the tensors.
            options: options of each parameter group that has rows in the bucket.
        """

    def norm(self) -> Tensor:
        """Return partial sums, float64 [n, 2]: sum of squares; 0, or not 0 after an Inf or NaN."""

    def prepare(self, partials: Tensor | None, report: Tensor | None, amp_state: AmpState) -> None:
        """Form the clip factor and the scalars, select rows to skip, advance the step count.

        Args:
            partials: partial sums of all buckets, float64 [n, 2]; None if the norm is not needed.
            report: output, float64 [3]: norm (NaN if unknown), clip factor, and 1 if rows are
                skipped, else 0; None for no report.
            amp_state: tensors of a GradScaler.
        """

    def sum_rows(self) -> Tensor:
        """Return the sums over each row that the rule needs, float64 [rows, sums]."""

    def update(self, sums: Tensor | None = None, numels: list[int] | None = None) -> Tensor | None:
        """Update every row in place; return counts of stalled elements, an integer tensor [n].

        The result is None unless the key has ``count_stalled``.

        Args:
            sums: sums over each whole tensor, float64 [rows, sums], of which the rows are shards;
                None to compute those of the rows.
            numels: number of elements of each whole tensor, if ``sums`` are given.
        """
