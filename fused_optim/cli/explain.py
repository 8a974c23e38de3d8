"""The command ``explain``: what ``optimizer.explain()`` says of a model."""

import re
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import Parameter

from fused_optim.cli import options, output
from fused_optim.cli.models import Shapes
from fused_optim.cli.output import UsageError
from fused_optim.explain import Explanation, ParameterExplanation
from fused_optim.optimizers.base import FusedOptimizer

NUMBER = re.compile(r"(?:(?<=\.)|(?<=layer_))\d+(?=\.)")  # of a layer, in a parameter's name


def explain(
    model: options.Model = "gpt2",
    optimizer: options.Optimizer = "AdamW",
    dtype: options.Dtype = "bfloat16",
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="As cuda, cpu, meta. [default: that of this machine]"),
    ] = None,
    weights: Annotated[str, typer.Option(metavar="FORMAT", help="Format of weights.")] = "plain",
    states: Annotated[str, typer.Option(metavar="FORMAT", help="Format of states.")] = "param",
    backend: options.Backend = "auto",
    max_grad_norm: options.MaxGradNorm = None,
    ema_decay: options.EmaDecay = None,
    arguments: options.Arguments = None,
    each: Annotated[bool, typer.Option("--each", help="A row for each parameter.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the rule, formats, backend and launch of each parameter, and why.

    Example: fused-optim explain --model gpt2-xl --weights split --states int8
    """
    shapes, rule = options.read_model(model), options.find_optimizer(optimizer)
    element = options.find_dtype(dtype)
    place = options.default_device() if device is None else options.find_device(device)
    given = options.read_arguments(
        arguments,
        weights=weights,
        states=states,
        backend=backend,
        max_grad_norm=max_grad_norm,
        ema_decay=ema_decay,
    )
    found, notes = explain_model(rule, create_parameters(shapes, element, place), given)
    if as_json:
        rows = [document_of(row) for row in found.rows]
        output.print_json({"model": model, "parameters": rows, "warnings": notes})
        return
    launches = len({row.launch for row in found.rows} - {None})
    shown = found if each else Explanation(join_layers(found.rows))
    output.console(wide=True).print(shown)
    output.print_text(f"{output.plural(launches, 'launch', 'launches')} of the update kernel")
    for note in notes:
        output.print_text(f"warning: {note}")


def create_parameters(
    shapes: Shapes, dtype: torch.dtype, device: torch.device
) -> list[tuple[str, Tensor]]:
    """Return named parameters in one memory, as large as the largest of them.

    Raises:
        UsageError: there is not enough memory.
    """
    try:
        buffer = torch.empty(max(map(prod, shapes.values())), dtype=dtype, device=device)
    except RuntimeError as error:
        message = f"{output.one_line(error)}; try --device meta"
        raise UsageError(message) from error
    return [(name, Parameter(buffer[: prod(shape)].view(shape))) for name, shape in shapes.items()]


def explain_model(
    optimizer: type[FusedOptimizer],
    parameters: Sequence[tuple[str, Tensor]],
    arguments: Mapping[str, Any],
) -> tuple[Explanation, list[str]]:
    """Return the explanation of an optimizer, and the warnings of its constructor.

    Raises:
        UsageError: an argument of the optimizer is wrong.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            found = optimizer(parameters, **arguments).explain()
        except (ValueError, TypeError, RuntimeError) as error:
            raise UsageError(output.one_line(error)) from error
    return found, list(dict.fromkeys(" ".join(str(w.message).split()) for w in caught))


def join_layers(rows: Sequence[ParameterExplanation]) -> list[ParameterExplanation]:
    """Join the rows that differ in the number of their layer only: ``h.*.ln_1.weight (12)``."""
    groups: dict[tuple[str, ...], list[ParameterExplanation]] = {}
    for row in rows:
        groups.setdefault((NUMBER.sub("*", row.name), *row.cells[1:]), []).append(row)
    return [
        own[0]._replace(name=f"{name} ({len(own)})") if len(own) > 1 else own[0]
        for (name, *_), own in groups.items()
    ]


def document_of(row: ParameterExplanation) -> dict[str, Any]:
    """Return a row for JSON."""
    dtype = str(row.dtype).removeprefix("torch.")
    return {**row._asdict(), "dtype": dtype, "states": dict(row.states)}
