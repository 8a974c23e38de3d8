"""Formula of the bytes that a step moves, and the committed counts that must not grow.

``python -m benchmarks.bytes_moved --write`` writes the counts of all optimizers and formats to
``byte_counts.json``; without ``--write`` it shows where they differ from that file.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fused_optim.backends.matrix_runner import direction_dtype
from fused_optim.optimizers.base import FusedOptimizer

PATH = Path(__file__).parent / "byte_counts.json"
SIZES = (5000, 3)  # of the tensors that are counted: with and without scales of blocks


class Columns(NamedTuple):
    """Bytes of the tensors that a step touches."""

    weights: int
    gradients: int
    states: int


def moved(columns: Columns, reads: int, writes: int = 0, measured: bool = False) -> int:
    """Return the bytes of a step: each column is read and written once, except the gradient.

    Args:
        columns: bytes of parameters, gradients and states, summed over all tensors.
        reads: number of reads of the gradient.
        writes: number of writes of the gradient.
        measured: True if the rule sums over each tensor before the update, one more read of all.
    """
    weights, gradients, states = columns
    once_more = weights + gradients + states if measured else 0
    return 2 * (weights + states) + (reads + writes) * gradients + once_more


def stored(value: Any) -> int:
    """Return the bytes of a state's tensors; some libraries wrap codes and scales in one object."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(stored(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    if isinstance(value, Tensor):
        return value.nbytes if value.dim() > 0 else 0  # a counter
    return sum(map(stored, getattr(value, "__dict__", {}).values()))


def held(optimizer: torch.optim.Optimizer) -> Columns:
    """Return the bytes of parameters, gradients and ``optimizer.state``, without 0-dim counters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [x for param in params for x in optimizer.state.get(param, {}).values()]
    gradients = [p.grad for p in params if p.grad is not None]
    return Columns(*(sum(map(stored, part)) for part in (params, gradients, states)))


def step_bytes(optimizer: FusedOptimizer) -> int:
    """Take a step of our optimizer and add up the bytes of the columns that reach the backend.

    The norm is another read of the gradients; clipping by it happens inside the update.
    """
    plan = optimizer._engine.plan
    with mock.patch.object(plan, "run", wraps=plan.run) as run:
        optimizer.step()
    rows, _, sums, *_ = run.call_args.args
    return sum(row_bytes(kind, row, sums.needs_norm) for kind, row in rows)


def row_bytes(kind: Any, row: Any, needs_norm: bool) -> int:
    """Return the bytes of a row of the plan; those of the products of matrices are not counted."""
    columns = columns_of(kind, row)
    total = moved(columns, 1 + needs_norm, measured=kind.rule.reduction is not None)
    step = kind.rule.matrix_step
    if step is not None:
        # one pass reads the weights and writes the directions, which the second reads
        direction = row.columns[0].numel() * direction_dtype(step, kind.device).itemsize
        total += columns.weights + 2 * direction
    return total


def columns_of(kind: Any, row: Any) -> Columns:
    """Return the bytes of a row of the plan, whose values may take several columns each."""
    sizes = [column.nbytes for column in row.columns]
    weights, gradients = kind.first[1], kind.first[2]
    return Columns(sum(sizes[:weights]), sum(sizes[weights:gradients]), sum(sizes[gradients:]))


class Count(NamedTuple):
    """The bytes of a step, found in two ways that must agree.

    Attributes:
        name: optimizer and format, with ", clip" if it clips.
        planned: bytes of the columns that reach the backend.
        implied: bytes computed from the parameters and the state after the step.
    """

    name: str
    planned: int
    implied: int


def counts() -> Iterator[Count]:
    """Yield the bytes of every optimizer of ours in every format."""
    from benchmarks import variants

    shapes = [[(size, 1) for size in SIZES]]  # of two dims, for Muon
    for optimizer, format, clip in product(variants.OPTIMIZERS, variants.FORMATS, (False, True)):
        try:
            groups = variants.parameters(shapes, format, "cpu")
            ours = variants.ours(optimizer, format, "reference", clip, groups)
        except ValueError:  # a format that this optimizer refuses
            continue
        planned = step_bytes(ours)
        sums = ours.rule(ours.param_groups[0]).reduction is not None
        implied = moved(held(ours), 1 + clip, measured=sums) + directions(ours)
        yield Count(f"{optimizer}, {format}{', clip' if clip else ''}", planned, implied)


def directions(optimizer: FusedOptimizer) -> int:
    """Return the bytes of the directions of matrices, written and read in float32 on a CPU.

    The pass that writes them reads the weights once more, with their extra bits. Less the states of
    rows, which are read and written beside the products.
    """
    step = optimizer.rule(optimizer.param_groups[0]).matrix_step
    if step is None:
        return 0
    extra = ("master", "remainder", "compensation")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[param] for param in params]
    weights = [*params, *(state[key] for state in states for key in extra if key in state)]
    rows = sum(2 * state[key].nbytes for state in states for key in step.row_states)
    return sum(weight.nbytes for weight in weights) + sum(8 * p.numel() for p in params) - rows


def differences(found: dict[str, int], committed: dict[str, int]) -> Iterator[str]:
    """Yield a line for each count that is not the committed one."""
    for name in sorted(found.keys() | committed.keys()):
        before, now = committed.get(name), found.get(name)
        if before != now:
            yield f"{name}: {before} bytes committed, {now} counted"


def main(arguments: Iterable[str] | None = None) -> int:
    """Write the counts or compare them; return 1 if they differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bytes_moved", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the counts the committed ones")
    options = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    found = {count.name: count.planned for count in counts()}
    if options.write:
        PATH.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    lines = list(differences(found, json.loads(PATH.read_text())))
    print("\n".join(lines) or f"{len(found)} counts as committed")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
