"""The checks that ``fused-optim check`` runs, their results, and the command that repeats one."""

import math
import shlex
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fused_optim.testing.closeness import Closeness
from fused_optim.testing.comparisons import (
    Gradients,
    compare_all_steps,
    compare_each_step,
    compare_with_reference,
    rank,
)
from fused_optim.testing.selection import Check

Shape = tuple[int, ...]
# none, one element, around a block of 64 and a chunk of 1024, and one that has scales and a tail
EDGE_SHAPES: dict[str, Shape] = {
    "scalar": (),
    "empty": (0,),
    "one": (1,),
    "short": (31,),
    "matrix": (33, 31),
    "wide": (40, 104),
    "chunk": (1025,),
    "long": (4161,),
}
LONGEST_MESSAGE = 300  # characters: torch names every backend that lacks an operation
STEPS = {"reference": 6, "float64": 6, "torch": 12}
FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class Settings(NamedTuple):
    """The settings that all checks of a run share.

    Attributes:
        device: device of the parameters.
        backend: resolved name of the backend.
        shapes: shapes of the parameters by name.
        seed: seed of parameters and gradients.
    """

    device: torch.device
    backend: str
    shapes: dict[str, Shape] = EDGE_SHAPES
    seed: int = 0


class Result(NamedTuple):
    """The result of one check.

    Attributes:
        check: the check.
        status: ``"skipped"`` if torch.optim itself is not finite, or no shape is a matrix for an
            optimizer of matrices.
        value: name of the value with the worst error.
        worst: its error and budget.
        message: what failed, or why the check was skipped.
        digest: hash of the bits of all results; only of a comparison with the reference.
        seconds: time that the check took.
    """

    check: Check
    status: Literal["passed", "failed", "skipped"]
    value: str = ""
    worst: Closeness = Closeness(0.0, 0.0)
    message: str = ""
    digest: str = ""
    seconds: float = 0.0


def uniform(
    shapes: Sequence[Shape], dtype: torch.dtype, seed: int, coarse: bool = False
) -> list[Tensor]:
    """Return uniform values in [-2, 2): unlike ``torch.randn``, the same on every processor.

    Args:
        shapes: shapes of the tensors.
        dtype: dtype of the tensors.
        seed: seed of the values.
        coarse: True for multiples of 1/8, whose squares add up without rounding in any order.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = 32 if coarse else 1 << 24
    return [
        (torch.randint(steps, shape, generator=generator) * (4.0 / steps) - 2.0).to(dtype)
        for shape in shapes
    ]


def drop_rows(grad: Tensor, step: int) -> Tensor:
    """Return ``grad`` as a sparse tensor without a third of its rows; the last one is there twice.

    Args:
        grad: dense gradient of one or more dims.
        step: step, of which it depends what rows there are.
    """
    rows = torch.arange(len(grad), device=grad.device)
    rows = rows[(rows + step) % 3 != 1]
    rows = torch.cat([rows, rows[-1:]])
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, check_invariants=False)


def run_checks(checks: Sequence[Check], settings: Settings) -> Iterator[Result]:
    """Run the checks, and yield each result."""
    for check in checks:
        start = time.perf_counter()
        result = run_check(check, settings)
        yield result._replace(seconds=time.perf_counter() - start)


def run_check(check: Check, settings: Settings) -> Result:
    """Run one check; an error of the library is a failure."""
    if not _list_shapes(check, settings):
        needed = "matrices" if check.variant.case.matrices else "rows of elements"
        message = f"{check.variant.case.name} updates {needed} only, and no shape has them"
        return Result(check, "skipped", message=message)
    with warnings.catch_warnings():
        # what the library tells the user about a format is no news to a check of the format
        warnings.simplefilter("ignore", UserWarning)
        try:
            found, bits = _compare(check, settings)
        except FAILURES as error:
            message = textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_MESSAGE)
            return Result(check, "failed", worst=Closeness(math.inf, 0.0), message=message)
    return _judge(check, found, bits)


def _list_shapes(check: Check, settings: Settings) -> list[Shape]:
    """Return the shapes that the optimizer can update."""
    case, shapes = check.variant.case, list(settings.shapes.values())
    if case.matrices:
        return [shape for shape in shapes if len(shape) == 2]
    return [shape for shape in shapes if prod(shape) and shape] if case.sparse else shapes


def _compare(check: Check, settings: Settings) -> tuple[dict[str, Closeness], str]:
    variant, shapes = check.variant, _list_shapes(check, settings)
    steps, device = STEPS[check.against], settings.device
    start = [x.to(device) for x in uniform(shapes, variant.dtype, settings.seed)]
    # the order of the sum of the norm is free: see docs/development.md
    additions = variant.case.additions
    coarse = "max_grad_norm" in additions or "nonfinite" in additions

    def grads(step: int) -> list[Tensor]:
        given = uniform(shapes, variant.dtype, 1000 * (settings.seed + 1) + step, coarse)
        given = [grad.to(device) for grad in given]
        return [drop_rows(grad, step) for grad in given] if variant.case.sparse else given

    make: Gradients = grads
    if check.against == "reference":
        return compare_with_reference(variant, start, make, steps)
    compare = compare_each_step if check.against == "float64" else compare_all_steps
    return compare(variant, start, make, steps), ""


def _judge(check: Check, found: dict[str, Closeness], bits: str) -> Result:
    value = max(found, key=lambda name: rank(found[name]))
    worst = found[value]
    failed = [name for name, closeness in found.items() if not closeness.close]
    if failed:
        errors = [f"{name} {_in_ulps(found[name])}" for name in failed]
        return Result(check, "failed", value, worst, "; ".join(errors), bits)
    without = [name for name, closeness in found.items() if math.isinf(closeness.baseline)]
    if without:
        message = f"{', '.join(without)} of torch.optim is not finite in {check.dtype}"
        return Result(check, "skipped", without[0], message=message, digest=bits)
    return Result(check, "passed", value, worst, "", bits)


def _in_ulps(found: Closeness) -> str:
    if math.isinf(found.error):
        return "is not finite"
    return f"is {found.ulps:.4g} ulps off, budget {found.budget_ulps:.4g}"


def repeat_command(check: Check, settings: Settings, shapes: str) -> str:
    """Return the command that repeats one check.

    Args:
        check: the check.
        settings: those of the run.
        shapes: argument of ``--shapes``.
    """
    variant = check.variant
    arguments = {
        "--optimizer": variant.case.name,
        "--dtype": check.dtype,
        "--weights": variant.weights,
        "--states": variant.states,
        "--against": check.against,
        "--device": str(settings.device),
        "--backend": settings.backend,
        "--shapes": shapes,
        "--seed": str(settings.seed),
    }
    words = [word for pair in arguments.items() for word in pair]
    return shlex.join(["fused-optim", "check", *words])


def describe_result(result: Result, settings: Settings, shapes: str) -> dict[str, Any]:
    """Return a result as JSON has it; an infinite error is None."""
    variant, worst = result.check.variant, result.worst
    return {
        "name": result.check.name,
        "optimizer": variant.case.class_name,
        "case": variant.case.name,
        "dtype": result.check.dtype,
        "weights": variant.weights,
        "states": variant.states,
        "against": result.check.against,
        "status": result.status,
        "value": result.value,
        "error_ulps": worst.ulps if math.isfinite(worst.ulps) else None,
        "budget_ulps": worst.budget_ulps if math.isfinite(worst.budget_ulps) else None,
        "message": result.message,
        "digest": result.digest,
        "seconds": round(result.seconds, 4),
        "command": repeat_command(result.check, settings, shapes),
    }


def count_elements(shapes: dict[str, Shape]) -> int:
    """Return the number of elements of all shapes."""
    return sum(map(prod, shapes.values()))
