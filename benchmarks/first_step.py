"""First steps of a training, run in a process of its own: ``python -m benchmarks.first_step``.

Prints as JSON the seconds of each step, the backend, and the compilers that the steps imported.
torch itself imports Triton, if it is installed, where any optimizer is constructed.
"""

import json
import sys
import time

import torch

import fused_optim
from benchmarks.shapes import MODELS, Shape, smallest

MODEL = "gpt-1m"
STEPS = 3
COMPILERS = ("triton", "llvmlite")


def measure(shapes: list[Shape]) -> dict[str, object]:
    """Take clipped steps of AdamW on the CPU."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = fused_optim.AdamW(params, max_grad_norm=1.0)
    seconds, before = [], set(sys.modules)
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    imported = [name for name in COMPILERS if name in sys.modules.keys() - before]
    return {"seconds": seconds, "backend": optimizer.backend_used, "imported": imported}


if __name__ == "__main__":
    model = MODELS[MODEL].tensors(MODELS[MODEL].layers)
    print(json.dumps(measure(smallest(model, 12) if "--smoke" in sys.argv else model)))
