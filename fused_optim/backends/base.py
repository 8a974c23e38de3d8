"""Where rows are updated. The plan knows a backend only through the protocol :class:`Launch`."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fused_optim import private_api
from fused_optim.formats.codecs import Codec
from fused_optim.step.rows import Row
from fused_optim.rules.common import Rule

if TYPE_CHECKING:
    from fused_optim.backends import tables

BackendName = Literal["auto", "triton", "native", "reference"]
BACKENDS: tuple[BackendName, ...] = ("auto", "triton", "native", "reference")
log = logging.getLogger("fused_optim")

# options of a group that every rule has; those of its rule follow
COMMON_OPTIONS = (
    "sign",
    "max_grad_norm",
    "max_grad_value",
    "l2",
    "l1",
    "skips",
    "any_skips",
    "ema_decay",
    "seed",
)
NUM_COMMON_SCALARS = 8  # the scalars of a row that every rule has: see kernels/update.py
Options = tuple[float | Tensor, ...]


class AmpState(NamedTuple):
    """What ``torch.amp.GradScaler`` hands to a step that unscales and skips by itself.

    Attributes:
        scale: float32 [1], what the loss was scaled by; None if the gradients are unscaled.
        found_inf: float32 [1], not 0 if the step is to be skipped; None if unknown.
    """

    scale: Tensor | None = None
    found_inf: Tensor | None = None


class BucketKey(NamedTuple):
    """What rows must share to share a launch.

    Attributes:
        backend: ``"triton"``, ``"native"`` or ``"reference"``.
        device: of all columns.
        rule: the update rule.
        codecs: storage formats of parameter, gradient and states.
        dtypes: of the columns.
        counter_dtype: of the counters; None if the rule has none.
        aligned: every address allows the widest accesses.
        ema: the last value is the average of the parameter.
        counts: count the elements that rounding leaves where they are.
    """

    backend: str
    device: torch.device
    rule: Rule
    codecs: tuple[Codec, ...]
    dtypes: tuple[torch.dtype, ...]
    counter_dtype: torch.dtype | None
    aligned: bool
    ema: bool = False
    counts: bool = False

    @property
    def compute(self) -> torch.dtype:
        """The dtype of the arithmetic: float64 for float64 parameters, else float32."""
        return torch.float64 if self.dtypes[0] is torch.float64 else torch.float32

    @property
    def first(self) -> tuple[int, ...]:
        """The first column of each value, and at the end the number of columns."""
        return tuple(accumulate((len(codec.columns) for codec in self.codecs), initial=0))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Elements of the value for each element of a column."""
        return tuple(column.block for codec in self.codecs for column in codec.columns)

    @property
    def stochastic(self) -> bool:
        """Whether any value is rounded stochastically."""
        return any(codec.stochastic for codec in self.codecs)

    @property
    def bytes_moved(self) -> float:
        """Bytes an element that the update reads and writes; the gradient is only read."""
        sizes = [d.itemsize / n for d, n in zip(self.dtypes, self.blocks, strict=True)]
        return 2 * sum(sizes) - sizes[self.first[1]]

    @property
    def vector(self) -> int:
        """Elements for which every address is aligned: those in 16 bytes of the widest column."""
        return 16 // max(dtype.itemsize for dtype in self.dtypes) if self.aligned else 1


@dataclass
class Bucket:
    """Rows of one kind, in one step.

    Attributes:
        rows: the parameters.
        options: :data:`COMMON_OPTIONS` and those of the rule, for each group that has rows here.
        members: index into ``options`` for each row.
    """

    rows: list[Row] = field(default_factory=list)
    options: list[Options] = field(default_factory=list)
    members: list[int] = field(default_factory=list)


class CompileError(RuntimeError):
    """A kernel that cannot be compiled, with the reason; nothing has been changed."""


class Launch(Protocol):
    """Updates all rows of one kind; keeps what can be kept from step to step."""

    def __init__(self, key: BucketKey) -> None: ...

    def bind(self, bucket: Bucket) -> None:
        """Take the rows and options of this step.

        Raises:
            CompileError: a kernel cannot be compiled. Nothing has been changed then.
        """

    def rebind(
        self,
        gradients: "np.ndarray[Any, Any]",
        rows: Callable[[], list[Row]],
        options: list[Options],
    ) -> None:
        """Take the rows of the last step, of which only the gradients have moved.

        Args:
            gradients: int64 [rows], the address of each gradient.
            rows: makes the rows, for a backend that needs the tensors.
            options: of each group that has rows here.
        """

    def norm(self) -> Tensor:
        """Partial sums, float64 [n, 2]: of squared gradients; 0, or NaN after an Inf or NaN."""

    def begin(self, partials: Tensor | None, report: Tensor | None, scaler: AmpState) -> None:
        """Decide and count. ``partials``: of all buckets; None where nothing needs the norm.

        ``report``: float64 [3], filled with the norm (NaN if unknown), the clip factor and
        whether rows were skipped.
        """

    def update(self) -> Tensor | None:
        """Update every row, in place; int64 [n] to be summed: what ``kind.counts`` asks for."""


def triton_unavailable_reason(device: torch.device) -> str | None:
    """Return the reason why Triton cannot run on ``device``, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu" and not _triton_may_run_on_cpu():
        return "triton has no driver for the CPU"
    if private_api.triton_is_interpreted():
        return None if device.type == "cpu" else f"the interpreter is on; {device} is not the CPU"
    try:
        runs_on = private_api.triton_device()
    except RuntimeError as error:
        return f"triton finds no device: {error}"
    # a driver may declare the CPU to be its device: then CPU tensors are device memory
    if runs_on.type != device.type:
        return f"triton runs on {runs_on.type} here and the parameters are on {device}"
    return None


def _triton_may_run_on_cpu() -> bool:
    """Whether somebody has set a driver or the interpreter; importing Triton takes 0.2 s."""
    return "triton" in sys.modules or "TRITON_INTERPRET" in os.environ


def native_unavailable_reason(device: torch.device) -> str | None:
    """Return the reason why kernels cannot be compiled for the CPU, or None if they can."""
    if device.type != "cpu":
        return f"it is for the CPU and the parameters are on {device}"
    for package in ("triton", "llvmlite"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install fused-optim[cpu]"
    from fused_optim.backends.native import levels

    try:
        levels.level()
    except levels.NoNativeCode as error:
        return str(error)
    return None


def resolve(name: str, device: torch.device) -> str:
    """Return the backend to use on ``device``.

    ``"auto"`` is Triton where it runs; else, on the CPU, ``"native"`` where kernels can be
    compiled for it; else the reference.

    Raises:
        RuntimeError: ``name`` is ``"triton"`` or ``"native"`` and cannot run there.
    """
    if name == "reference":
        return name
    if name == "native":
        return _required(name, native_unavailable_reason(device))
    # a meta tensor has no memory for a kernel to write
    reason = "meta tensors have no data" if device.type == "meta" else triton_unavailable_reason(device)
    if name == "triton" or reason is None:
        return _required("triton", reason)
    if device.type != "cpu":
        return "reference"
    reason = native_unavailable_reason(device)
    chosen = "native" if reason is None else "reference"
    because = "" if reason is None else f": {reason}"
    log.info("backend='auto' is %r on the CPU%s", chosen, because)
    return chosen


def _required(name: str, reason: str | None) -> str:
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot be used: {reason}")
    return name


def make_runner(key: BucketKey) -> Launch:
    """Return the launch of one kind of rows."""
    if key.backend == "reference":
        from fused_optim.backends import reference

        return reference.ReferenceRunner(key)
    from fused_optim.backends import tables

    return tables.KernelRunner(key, _make_executor(key))


def _make_executor(key: BucketKey) -> "tables.Executor":
    if key.backend == "native":
        from fused_optim.backends.native import executor

        return executor.NativeExecutor(key)
    from fused_optim.backends import triton

    return triton.TritonExecutor(key)
