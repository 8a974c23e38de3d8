"""The table of ``optimizer.explain()``: the rule, formats, backend and launch of each parameter."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fused_optim import tensor_checks
from fused_optim.backends.base import BucketKey
from fused_optim.backends.select import native_unavailable_reason, triton_unavailable_reason
from fused_optim.bucket_prediction import Subject, predict_key
from fused_optim.formats import registry
from fused_optim.formats.codecs import Codec
from fused_optim.matrix.summary import Matrices, describe_matrices, list_matrices
from fused_optim.options import get_option
from fused_optim.step.engine import StepEngine, SteppedOptimizer
from fused_optim.step.guards import Group


class ParameterExplanation(NamedTuple):
    """The rule, formats, backend and launch by which the next step updates one parameter.

    Attributes:
        name: name in ``named_parameters()`` if the optimizer was given names, else
            ``"group.index"``.
        shape: shape of the parameter; None if it is not initialized yet.
        dtype: dtype of the parameter.
        rule: name of the function in ``fused_optim.rules`` that updates it; "" without an update.
        weights: storage format of the weight, a value of the option ``weights``.
        states: storage format of each state: a value of the option ``states``, or ``"fp32"``,
            ``"fp32 (small)"`` where the tensor is too small for scales, ``"fp64"``.
        backend: ``"triton"``, ``"native"`` or ``"reference"``; "" if it is not available.
        launch: number of the launch of the update kernel, from 1; parameters in one bucket share
            it. None without an update.
        placement: device; for a DTensor also its mesh and placements.
        why: why it is not updated, or why backend and formats are not the ones that the options
            name; "" where there is nothing to explain.
        matrices: for a rule that transforms matrices, such as Muon's, those into which the
            parameter is divided, with the factor of the learning rate of each.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype
    rule: str = ""
    weights: str = ""
    states: Mapping[str, str] = {}
    backend: str = ""
    launch: int | None = None
    placement: str = ""
    why: str = ""
    matrices: tuple[Matrices, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The values as text, one for each of :data:`COLUMNS`."""
        shape = "?" if self.shape is None else " x ".join(map(str, self.shape)) or "0-dim"
        dtype = _short(self.dtype)
        launch = "-" if self.launch is None else str(self.launch)
        matrices = describe_matrices(self.matrices)
        middle = (self.rule, matrices, self.weights, _join_formats(self.states), self.backend)
        known = [cell or "-" for cell in middle]
        return (self.name, shape, dtype, *known, launch, self.placement, self.why)


SMALL = "fp32 (small)"  # a tensor that is too small for the scales of its format
COLUMNS = (
    "parameter",
    "shape",
    "dtype",
    "rule",
    "matrices",
    "weights",
    "states",
    "backend",
    "launch",
    "placement",
    "why",
)


@dataclass(frozen=True, repr=False)
class Explanation:
    """The explanations of all parameters; ``str()`` and rich render them as a table.

    Attributes:
        rows: one row for each parameter, in the order of the groups.
    """

    rows: list[ParameterExplanation]

    @property
    def columns(self) -> list[str]:
        """The heads of the table: without "matrices" if no rule transforms them."""
        has_matrices = any(row.matrices for row in self.rows)
        return [column for column in COLUMNS if column != "matrices" or has_matrices]

    def cells(self, row: ParameterExplanation) -> list[str]:
        """Return the values of a row as text, one for each of :attr:`columns`."""
        values = dict(zip(COLUMNS, row.cells, strict=True))
        return [values[column] for column in self.columns]

    def __str__(self) -> str:
        return align([self.cells(row) for row in self.rows], self.columns)

    __repr__ = __str__  # a session of Python shows the table

    def __rich__(self) -> Any:
        """Return a ``rich.table.Table``, for ``rich.print``; its caption has the reasons."""
        from rich.table import Table
        from rich.text import Text

        reasons = dict.fromkeys(row.why for row in self.rows if row.why)
        numbers = {why: i for i, why in enumerate(reasons, 1)}
        notes = [f"{i}: {why}" for why, i in numbers.items()]
        table = Table(caption=Text("\n".join(notes)), caption_justify="left")
        wrapped = ("parameter", "matrices", "states", "placement")
        for column in self.columns:
            table.add_column(column, no_wrap=column not in wrapped)
        for row in self.rows:
            note = str(numbers.get(row.why, ""))
            # as Text, in which brackets are not markup
            table.add_row(*map(Text, (*self.cells(row)[:-1], note)))
        return table


def align(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """Return lines of cells under their heads, in columns of even width."""
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in table
    )
    return "\n".join(line.rstrip() for line in padded)


def _join_formats(states: Mapping[str, str]) -> str:
    """Return the formats of all states as text, with names unless all have the same format."""
    keys: dict[str, list[str]] = {}
    for key, format in states.items():
        keys.setdefault(format, []).append(key)
    if len(keys) == 1:
        return next(iter(keys))
    return "; ".join(f"{', '.join(names)}: {format}" for format, names in keys.items())


def explain(optimizer: SteppedOptimizer, engine: StepEngine) -> Explanation:
    """Return how the next step will update each parameter, and why not otherwise.

    It is assumed that every parameter that requires a gradient will have one, dense unless it has
    a sparse one now. Nothing is changed, created or compiled.

    Args:
        optimizer: optimizer to explain.
        engine: engine of its steps.
    """
    rows: list[ParameterExplanation] = []
    buckets: list[Any] = []
    seen: Counter[Tensor] = Counter()
    alone = engine.updated_in_backward
    for row, key, param in predict_rows(optimizer, engine):
        why = row.why
        if key is not None and seen[param]:
            why = _join(why, "repeated in its group: updated once more, in a launch of its own")
        if key is not None and param in alone:
            why = _join(why, "updated in backward, in a launch of its own")
        rows.append(row._replace(why=why))
        own = id(param) if param in alone else None
        buckets.append(None if key is None else (seen[param], key, own))
        seen[param] += 1
    # the first occurrences of all parameters are updated before the second ones
    used = sorted(dict.fromkeys(filter(None, buckets)), key=lambda bucket: bucket[0])
    numbers = {bucket: number for number, bucket in enumerate(used, 1)}
    return Explanation(
        [row._replace(launch=numbers.get(key)) for row, key in zip(rows, buckets, strict=True)]
    )


def predict_rows(
    optimizer: SteppedOptimizer, engine: StepEngine
) -> Iterator[tuple[ParameterExplanation, BucketKey | None, Tensor]]:
    """Yield for each parameter its row, its bucket key in the next step, and the parameter.

    The key is None for a parameter that is not updated. The rows lack the launch.
    """
    for group_index, group in enumerate(optimizer.param_groups):
        for i, (param, name) in enumerate(tensor_checks.named_params(group)):
            lazy = is_lazy(param)
            row = ParameterExplanation(
                f"{group_index}.{i}" if name is None else name,
                None if lazy else tuple(param.shape),
                param.dtype,
                placement=_describe_placement(param),
            )
            key = None
            if lazy:
                row = row._replace(why="lazy: no shape yet, run a forward pass")
            elif not param.requires_grad and param.grad is None:
                row = row._replace(why="frozen: requires_grad=False, no update")
            else:
                row, key = _explain_update(
                    row, Subject(param, name, group_index, optimizer, engine)
                )
            yield row, key, param


def _explain_update(
    row: ParameterExplanation, subject: Subject
) -> tuple[ParameterExplanation, BucketKey | None]:
    """Complete the row of a parameter; return it and the bucket key, None if a step will raise."""
    group = subject.group
    try:
        key = predict_key(subject)
    except (ValueError, TypeError, RuntimeError) as error:
        message = " ".join(str(error).split())  # on one line
        return row._replace(why=f"step() will raise {type(error).__name__}: {message}"), None
    weights = "plain" if key.codecs[0] is registry.PLAIN else get_option(group, "weights")
    states = {
        state_key: _name_format(state_key, codec, key, group)
        for state_key, codec in zip(key.rule.state_keys, key.codecs[2:], strict=True)
    }
    why = _why_backend(get_option(group, "backend"), key)
    if weights != get_option(group, "weights"):
        dtypes = " and ".join(map(_short, registry.WEIGHTS[get_option(group, "weights")].dtypes))
        why = _join(why, f"weights={group['weights']!r} is for {dtypes}")
    if SMALL in states.values():
        limit = registry.MIN_SCALED_NUMEL
        why = _join(why, f"states={group['states']!r} needs {limit} elements")
    if key.backend == "triton" and not key.aligned:
        why = _join(why, "misaligned: an address is not a multiple of 16 bytes")
    if key.exchanged:
        why = _join(why, "ranks share its matrices: one of them transforms them, all exchange them")
    row = row._replace(weights=weights, states=states, why=why, matrices=_list_matrices(row, key))
    return row._replace(rule=key.rule.update.__name__, backend=key.backend), key


def _list_matrices(row: ParameterExplanation, key: BucketKey) -> tuple[Matrices, ...]:
    """Return the matrices that the rule transforms in a parameter of a bucket."""
    step = key.rule.matrix_step
    if step is None or row.shape is None:
        return ()
    return list_matrices(row.shape, step.cut, step.settings.adjust_lr)


def _name_format(state_key: str, codec: Codec, key: BucketKey, group: Group) -> str:
    """Return the name of the format of a state."""
    if codec is registry.PLAIN:
        return "param"
    (first, *scales) = codec.columns
    if scales or codec.stochastic:
        return str(get_option(group, "states"))
    if first.dtype is torch.float64:
        return "fp64"
    # these are never stored with scales
    wide = state_key in (*key.rule.fp32_keys, "ema")
    return "fp32" if wide or get_option(group, "states") in ("param", "fp32") else SMALL


def _why_backend(chosen: str, key: BucketKey) -> str:
    """Return why the backend is not another, or ""."""
    if chosen != "auto":
        return f"backend={chosen!r}"
    if key.backend == "triton":
        return ""
    if not key.has_data:
        kind = "meta" if key.device.type == "meta" else "fake"
        return f"not triton: {kind} tensors have no data"
    why = f"not triton: {triton_unavailable_reason(key.device)}"
    if key.backend == "native":
        return why
    failed = "its kernels could not be compiled in an earlier step"
    return f"{why}; not native: {native_unavailable_reason(key.device) or failed}"


def _describe_placement(param: Tensor) -> str:
    """Return the device of a parameter as text; for a DTensor also its mesh and placements."""
    mesh: Any = getattr(param, "device_mesh", None)
    placements = getattr(param, "placements", None)
    if mesh is None or placements is None:
        return str(param.device)
    sizes = map(str, mesh.shape)
    if mesh.mesh_dim_names:
        sizes = map("=".join, zip(mesh.mesh_dim_names, sizes, strict=True))
    return f"{param.device}, mesh ({', '.join(sizes)}), {', '.join(map(repr, placements))}"


def _join(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
