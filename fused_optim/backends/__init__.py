"""Where rows are updated. The plan knows a backend only through the protocol :class:`Launch`."""

import importlib.util
import logging
import os
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fused_optim import private_api
from fused_optim.codecs import Codec
from fused_optim.layout import Row
from fused_optim.rules.common import Rule

BackendName = Literal["auto", "triton", "compiled", "reference"]
BACKENDS: tuple[BackendName, ...] = ("auto", "triton", "compiled", "reference")
WORTHWHILE = 1 << 24  # elements: from here on "auto" compiles, which takes seconds the first time
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
HEAD = 8  # the scalars of a row that every rule has: see kernels/update.py
Options = tuple[float | Tensor, ...]


class Scaler(NamedTuple):
    """What ``torch.amp.GradScaler`` hands to a step that unscales and skips by itself.

    Attributes:
        scale: float32 [1], what the loss was scaled by; None if the gradients are unscaled.
        found_inf: float32 [1], not 0 if the step is to be skipped; None if unknown.
    """

    scale: Tensor | None = None
    found_inf: Tensor | None = None


class Kind(NamedTuple):
    """What rows must share to share a launch.

    Attributes:
        backend: ``"triton"``, ``"compiled"`` or ``"reference"``.
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
    def keyed(self) -> bool:
        """Whether any value is rounded stochastically."""
        return any(codec.keyed for codec in self.codecs)

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


class NotCompiled(RuntimeError):
    """A program that torch.compile cannot make, with the reason; nothing has been changed."""


class Launch(Protocol):
    """Updates all rows of one kind; keeps what can be kept from step to step."""

    def __init__(self, kind: Kind) -> None: ...

    def bind(self, bucket: Bucket) -> None:
        """Take the rows and options of this step."""

    def norm(self) -> Tensor:
        """Partial sums, float64 [n, 2]: of squared gradients; 0, or NaN after an Inf or NaN."""

    def begin(self, partials: Tensor | None, report: Tensor | None, scaler: Scaler) -> None:
        """Decide and count. ``partials``: of all buckets; None where nothing needs the norm.

        ``report``: float64 [3], filled with the norm (NaN if unknown), the clip factor and
        whether rows were skipped.
        """

    def update(self) -> Tensor | None:
        """Update every row, in place; int64 [n] to be summed: what ``kind.counts`` asks for."""


def why_not_triton(device: torch.device) -> str | None:
    """The reason why Triton cannot run on ``device``, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
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


def why_not_compiled(device: torch.device) -> str | None:
    """The reason why torch.compile cannot make code for ``device``, or None if it can."""
    if device.type != "cpu":
        return f"it is for the CPU and the parameters are on {device}"
    try:
        private_api.cpp_compiler()
    except (RuntimeError, OSError) as error:
        named = os.environ.get("CXX", "g++")
        return f"there is no C++ compiler ({named}; CXX names another): {type(error).__name__}"
    return None


def resolve(name: str, device: torch.device, numel: int) -> str:
    """The backend to use on ``device`` for ``numel`` elements in all.

    ``"auto"`` is Triton where it runs; else, on the CPU, ``"compiled"`` from ``WORTHWHILE``
    elements on if there is a C++ compiler; else the reference.

    Raises:
        RuntimeError: ``name`` is ``"triton"`` or ``"compiled"`` and cannot run there.
    """
    if name == "reference":
        return name
    if name == "compiled":
        return _required(name, why_not_compiled(device))
    # a meta tensor has no memory for a kernel to write
    reason = "meta tensors have no data" if device.type == "meta" else why_not_triton(device)
    if name == "triton" or reason is None:
        return _required("triton", reason)
    if device.type != "cpu":
        return "reference"
    if numel < WORTHWHILE:
        reason = f"of less than {WORTHWHILE} elements"
    else:
        reason = why_not_compiled(device)
    chosen = "compiled" if reason is None else "reference"
    because = "" if reason is None else f": {reason}"
    log.info("backend='auto' is %r for %d elements on the CPU%s", chosen, numel, because)
    return chosen


def _required(name: str, reason: str | None) -> str:
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot be used: {reason}")
    return name


def make_launch(kind: Kind) -> Launch:
    """The launch of one kind of rows."""
    if kind.backend == "reference":
        from fused_optim.backends import reference

        return reference.ReferenceLaunch(kind)
    if kind.backend == "compiled":
        from fused_optim.backends import compiled

        return compiled.CompiledLaunch(kind)
    from fused_optim.backends import triton

    return triton.TritonLaunch(kind)
