"""Digests of everything that the reference computes, for comparisons between processors.

With ``tests`` in PYTHONPATH, ``python -m helpers.digests`` prints them as JSON, for one thread and
for two.
"""

import hashlib
import json
import sys
from collections.abc import Sequence

import torch
from helpers.models import parameters, set_grads, state_of
from torch import Tensor

from ci.codegen.rules import FORMAT_PAIRS
from fused_optim.rules import common
from fused_optim.testing.cases import CASES, Case

SIZES = [1, 7, 1025]
LARGE = 140001  # more than two threads take at once
# with sums over each tensor, over all of them, and without
AT_LARGE = ("adamw-betas", "sgd-everything", "lamb-bounds", "lars-decay", "stable-adamw-decay")
NAMES = [
    "adamw-betas",
    "adamw-amsgrad",
    "sgd-everything",
    "lamb-bounds",
    "lars-decay",
    "stable-adamw-decay",
    "radam",
    "nadam-l2",
    "adan-decay",
    "ademamix-warmups",
    "free-adamw-powers",
    "rmsprop-both",
    "asgd-l2",
]


def digest(tensors: Sequence[Tensor]) -> str:
    """Return a hash of the bits of all tensors."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()[:16]


def uniform(sizes: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Return uniform values in [-2, 2); the bits of ``torch.randn`` depend on the processor."""
    generator = torch.Generator().manual_seed(seed)
    result = (torch.rand(size, generator=generator, dtype=torch.float64) for size in sizes)
    return [(4.0 * x - 2.0).to(dtype) for x in result]


def steps(case: Case, dtype: torch.dtype, sizes: Sequence[int], **options: object) -> list[Tensor]:
    """Return parameters, states and norms after two steps that clip."""
    params = parameters(uniform(sizes, dtype, 0))
    options = {**case.options, **case.additions, "max_grad_norm": 1.0, **options}
    optimizer = case.fused(params, **options, backend="reference")
    norms = []
    for seed in (1, 2):
        set_grads(params, uniform(sizes, dtype, seed))
        optimizer.step()
        norms.append(optimizer.grad_norm)
    states = [state_of(optimizer, param).values() for param in params]
    return [*params, *(tensor for state in states for tensor in state), *norms]


def blocks() -> dict[str, str]:
    """Return a digest for each building block of the rules."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 100003, generator=generator, dtype=torch.float64)
    result = {f"root {z.dtype}": common.sqrt_rn(z) for z in (x, x.float())}
    result |= {"exp": common.exp(80.0 * (x - 0.5)), "log": common.log(x + y)}
    result["real_power"] = common.pow_real(2.0 * x, 3.0 * y)
    result["power"] = common.pow_int(x, (1e6 * y).long().double())
    return {name: digest([tensor]) for name, tensor in result.items()}


def digests(threads: int) -> dict[str, str]:
    """Return digests of the blocks, and of steps in float32, float64 and every storage format.

    What is too small for several threads is computed with one.
    """
    result = blocks()
    for case in CASES:
        if case.name in (NAMES if threads == 1 else AT_LARGE):
            sizes = [*SIZES, *([LARGE] if case.name in AT_LARGE else [])]
            for dtype in (torch.float32, torch.float64):
                result[f"{case.name} {dtype}"] = digest(steps(case, dtype, sizes))
    for formats in FORMAT_PAIRS:
        case = Case("formats", "AdamW", {"lr": 0.1})
        name = "-".join(formats.values())
        result[name] = digest(steps(case, torch.bfloat16, [70001], **formats))
    return result


def main() -> None:
    """Print ``{threads: digests}`` and the processor's capability as JSON."""
    result: dict[str, object] = {"capability": torch.backends.cpu.get_cpu_capability()}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        result[str(threads)] = digests(threads)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
