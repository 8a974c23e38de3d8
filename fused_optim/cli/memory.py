"""The command ``memory``: bytes of a model in training, for each storage format."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch.nn import Parameter

from fused_optim.cli import options, output
from fused_optim.cli.models import Shape, Shapes, count_elements
from fused_optim.cli.output import UsageError
from fused_optim.formats import registry
from fused_optim.memory_estimate import Memory, estimate_memory
from fused_optim.optimizers.base import FusedOptimizer

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
PARTS = {
    "parameters": "#08306b",
    "gradients": "#9ecae1",
    "extra bits": "#d94801",
    "states": "#fd8d3c",
    "EMA": "#969696",
}
Weights = Annotated[
    list[str] | None, typer.Option(metavar="FORMAT", help="Format of weights; repeatable.")
]
States = Annotated[
    list[str] | None, typer.Option(metavar="FORMAT", help="Format of states; repeatable.")
]


class Bytes(NamedTuple):
    """The bytes of a model in training in one storage format.

    Attributes:
        weights: format of the weights.
        states: format of the states.
        parameters: bytes of the parameters.
        gradients: bytes of the gradients.
        extra_bits: bytes that the format of the weights adds: fp32 master weights, or other bits.
        optimizer_states: bytes of the optimizer's states, without these.
        ema: bytes of the average of the weights.
        moved: bytes that one step reads and writes.
    """

    weights: str
    states: str
    parameters: int
    gradients: int
    extra_bits: int
    optimizer_states: int
    ema: int
    moved: int

    @property
    def parts(self) -> tuple[int, ...]:
        """The bytes of each part, in the order of :data:`PARTS`."""
        return (
            self.parameters,
            self.gradients,
            self.extra_bits,
            self.optimizer_states,
            self.ema,
        )

    @property
    def total(self) -> int:
        """All that is kept."""
        return sum(self.parts)


class Estimator:
    """The memory of a list of shapes, by way of :func:`fused_optim.memory`.

    Args:
        shapes: shapes of the parameters.
        dtype: dtype of the parameters and gradients.
        optimizer: optimizer class.
        arguments: keyword arguments of the optimizer, except the formats.
    """

    def __init__(
        self,
        shapes: Shapes,
        dtype: torch.dtype,
        optimizer: type[FusedOptimizer],
        arguments: Mapping[str, Any],
    ) -> None:
        self.counts = Counter(shapes.values())
        self.dtype = dtype
        self.optimizer = optimizer
        self.arguments = dict(arguments)
        self.with_ema = self.arguments.pop("ema_decay", None)
        self.sum_of = cache(self._sum_of)

    def bytes_of(self, weights: str, states: str) -> Bytes:
        """Return the bytes in one format.

        Raises:
            ValueError: the optimizer has no such format, or an argument is out of range.
            TypeError: an argument is unknown or has another type.
        RuntimeError: the optimizer takes only sparse gradients, and none in this format.
        """
        plain = self.sum_of("plain", states, None)
        without_ema = self.sum_of(weights, states, None)
        full = self.sum_of(weights, states, self.with_ema)
        return Bytes(
            weights,
            states,
            full.parameters,
            full.gradients,
            without_ema.states - plain.states,
            plain.states,
            full.states - without_ema.states,
            full.moved,
        )

    def _sum_of(self, weights: str, states: str, ema_decay: float | None) -> Memory:
        """Add the memory of all parameters; those of one shape take the same."""
        formats = {"weights": weights, "states": states, "ema_decay": ema_decay}
        columns = [
            [count * size for size in self._memory_of(shape, formats)]
            for shape, count in self.counts.items()
        ]
        return Memory(*map(sum, zip(*columns, strict=True)))

    def _memory_of(self, shape: Shape, formats: Mapping[str, Any]) -> Memory:
        param = Parameter(torch.empty(shape, dtype=self.dtype, device="meta"))
        return estimate_memory([param], self.optimizer, **self.arguments, **formats)


def memory(
    model: options.Model = "gpt2",
    optimizer: options.Optimizer = "AdamW",
    dtype: options.Dtype = "bfloat16",
    weights: Weights = None,
    states: States = None,
    ema_decay: options.EmaDecay = None,
    max_grad_norm: options.MaxGradNorm = None,
    arguments: options.Arguments = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw bars into this file.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show the bytes of a model in training, in each storage format.

    Example: fused-optim memory --model gpt2-xl --states int8 --plot out.png
    """
    output.check_plot(plot)
    shapes, rule = options.read_model(model), options.find_optimizer(optimizer)
    element = options.find_dtype(dtype)
    given = options.read_arguments(arguments, ema_decay=ema_decay, max_grad_norm=max_grad_norm)
    formats = list(product(choose_weights(weights, element), choose_states(states)))
    estimator = Estimator(shapes, element, rule, given)
    found, refused = estimate_formats(estimator, formats)
    if as_json:
        output.print_json(
            {
                "model": model,
                "tensors": len(shapes),
                "elements": count_elements(shapes),
                "optimizer": rule.__name__,
                "dtype": str(element).removeprefix("torch."),
                "formats": [document_of(row) for row in found],
                "refused": refused,
            }
        )
    else:
        elements = count_elements(shapes)
        size = f"{elements:,} parameters in {output.plural(len(shapes), 'tensor')}"
        print_formats(found, elements, f"{model}: {size}, {rule.__name__}, {dtype}")
        for reason, names in group_reasons(refused).items():
            output.print_text(f"not for {'; '.join(names)}: {reason}")
    if plot is not None:
        output.save_plot(draw(found, f"{model}, {rule.__name__}, {dtype}"), plot)


def choose_weights(asked: Sequence[str] | None, dtype: torch.dtype) -> list[str]:
    """Return the formats of weights to compare, for parameters of ``dtype``.

    Raises:
        UsageError: there is no such format, or not for ``dtype``.
    """
    known = [n for n, found in registry.WEIGHTS.items() if dtype in found.dtypes] or ["plain"]
    for name in asked or ():
        if name not in registry.WEIGHTS:
            raise UsageError(
                f"--weights must be one of {', '.join(registry.WEIGHTS)}, got {name!r}"
            )
        if name not in known:
            short = str(dtype).removeprefix("torch.")
            raise UsageError(f"--weights {name} is not for --dtype {short}: {', '.join(known)}")
    return list(dict.fromkeys(asked or known))


def choose_states(asked: Sequence[str] | None) -> list[str]:
    """Return the formats of states to compare.

    Raises:
        UsageError: there is no such format.
    """
    for name in asked or ():
        if name not in registry.STATES:
            raise UsageError(f"--states must be one of {', '.join(registry.STATES)}, got {name!r}")
    return list(dict.fromkeys(asked or registry.STATES))


def estimate_formats(
    estimator: Estimator, formats: Sequence[tuple[str, str]]
) -> tuple[list[Bytes], dict[str, str]]:
    """Return the bytes in each format, and the reason for each that the optimizer does not take.

    Raises:
        UsageError: the optimizer takes none of them.
    """
    found: list[Bytes] = []
    refused: dict[str, str] = {}
    with output.progress_bar(len(formats)) as bar, warnings.catch_warnings():
        # of formats in which a value cannot decay: only the bytes are asked for
        warnings.simplefilter("ignore", UserWarning)
        for weights, states in formats:
            bar.describe(f"{weights}, {states}")
            try:
                found.append(estimator.bytes_of(weights, states))
            except (ValueError, TypeError, RuntimeError) as error:
                refused[f"{weights}, {states}"] = output.one_line(error)
            bar.advance()
    if not found:
        raise UsageError(next(iter(refused.values())))
    return found, refused


def group_reasons(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the formats by the reason for which they are refused."""
    reasons: dict[str, list[str]] = {}
    for name, reason in refused.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def document_of(row: Bytes) -> dict[str, Any]:
    """Return a row for JSON."""
    return {**row._asdict(), "total": row.total}


def choose_unit(largest: int) -> tuple[str, int]:
    """Return the unit for numbers up to ``largest`` bytes, and its size."""
    power = 0
    while power + 1 < len(UNITS) and largest >= 1024 ** (power + 1):
        power += 1
    return UNITS[power], 1024**power


def print_formats(rows: Sequence[Bytes], elements: int, title: str) -> None:
    """Print a table of the formats: what is kept and moved; without parts that none has."""
    unit, size = choose_unit(max(row.total for row in rows))
    shown = [index for index in range(len(PARTS)) if any(row.parts[index] for row in rows)]
    lines = [
        [
            row.weights,
            row.states,
            *(f"{row.parts[index] / size:.2f}" for index in shown),
            f"{row.total / size:.2f}",
            f"{row.total / max(1, elements):.2f}",
            f"{row.moved / max(1, elements):.2f}",
        ]
        for row in rows
    ]
    parts = [list(PARTS)[index] for index in shown]
    heads = ["weights", "states", *parts, "total", "total/param", "moved/param"]
    output.print_table(heads, lines, title, names=2)
    output.print_text(f"{unit}; the last two columns: bytes for each parameter, kept and in a step")


def draw(rows: Sequence[Bytes], title: str) -> Any:
    """Draw a bar for each format, of the parts of what is kept."""
    unit, size = choose_unit(max(row.total for row in rows))
    figure = output.new_figure(8.0, 0.27 * len(rows) + 1.5)
    figure.suptitle(f"Memory in training without activations: {title}", fontsize=11)
    axes = figure.subplots()
    names = [f"{row.weights}, {row.states}" for row in rows]
    ends = [0.0] * len(rows)
    for index, (part, colour) in enumerate(PARTS.items()):
        sizes = [row.parts[index] / size for row in rows]
        if any(sizes):
            axes.barh(names, sizes, left=ends, color=colour, label=part, height=0.72)
        ends = [end + added for end, added in zip(ends, sizes, strict=True)]
    for at, end in enumerate(ends):
        axes.text(end, at, f" {end:.2f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.02)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    axes.set_ylabel("weights, states")
    figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, fontsize=8)
    return figure
