"""Types that the step shares with its backends, and the protocol :class:`BucketRunner`."""

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
    """

    common: CommonOptions
    hparams: Any

    @property
    def flat(self) -> tuple[float | Tensor, ...]:
        """All options in the order in which kernels read them."""
        return (*self.common, *self.hparams)


class AmpState(NamedTuple):
    """The tensors by which ``torch.amp.GradScaler`` asks a step to unscale and to skip.

    Attributes:
        grad_scale: float32 [1], the factor by which the loss was scaled; None if the gradients are
            unscaled already.
        found_inf: float32 [1], not 0 if the step is to be skipped; None if unknown.
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
    def stochastic(self) -> bool:
        """Whether any value is rounded stochastically."""
        return any(codec.stochastic for codec in self.codecs)

    @property
    def bytes_moved(self) -> float:
        """Bytes per element that the update reads and writes; the gradient is only read."""
        sizes = [d.itemsize / n for d, n in zip(self.dtypes, self.blocks, strict=True)]
        return 2 * sum(sizes) - sizes[self.first[1]]

    @property
    def vector(self) -> int:
        """Number of elements for which every address is aligned: 16 bytes of the widest column."""
        return 16 // max(dtype.itemsize for dtype in self.dtypes) if self.aligned else 1


@dataclass
class Bucket:
    """The rows of one step that share a :class:`BucketKey`.

    Attributes:
        rows: one row for each parameter.
        options: options of each parameter group that has rows here.
        group_of_row: index into ``options`` for each row.
    """

    rows: list[Row] = field(default_factory=list)
    options: list[GroupOptions] = field(default_factory=list)
    group_of_row: list[int] = field(default_factory=list)


class CompileError(RuntimeError):
    """A kernel cannot be compiled; the message says why. Nothing has been changed."""


class BucketRunner(Protocol):
    """Updates all rows of one bucket, and keeps its tables from step to step."""

    def bind(self, bucket: Bucket) -> None:
        """Take the rows and options of this step.

        Raises:
            CompileError: a kernel cannot be compiled. Nothing has been changed then.
        """

    def rebind(
        self,
        grad_addresses: "np.ndarray[Any, Any]",
        make_rows: Callable[[], list[Row]],
        options: list[GroupOptions],
    ) -> None:
        """Take the rows of the last step, of which only the gradients have moved.

        Args:
            grad_addresses: int64 [rows], the address of each gradient.
            make_rows: returns the rows, for a backend that needs the tensors.
            options: options of each parameter group that has rows here.
        """

    def norm(self) -> Tensor:
        """Return partial sums, float64 [n, 2]: of squares; 0, or NaN after an Inf or NaN."""

    def prepare(self, partials: Tensor | None, report: Tensor | None, amp_state: AmpState) -> None:
        """Form the clip factor, decide which rows to skip, count the step, form the scalars.

        Args:
            partials: partial sums of all buckets; None where nothing needs the norm.
            report: float64 [3], filled with the norm (NaN if unknown), the clip factor and 1 if
                rows were skipped, else 0; or None.
            amp_state: tensors of a GradScaler.
        """

    def update(self) -> Tensor | None:
        """Update every row in place; return int64 [n], counts of stalled elements, if asked to."""
