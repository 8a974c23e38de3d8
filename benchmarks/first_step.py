"""First steps of a training: ``python -m benchmarks.first_step [--smoke] CACHE...``.

Each folder for compiled kernels is that of one process, a child of this one, in which nothing has
been compiled or read yet. Prints as JSON, a line for each, the seconds of each step, the backend,
and the compilers that the steps imported. torch itself imports Triton, if it is installed, where
any optimizer is constructed.
"""

import json
import os
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


def fork(cache: str, shapes: list[Shape]) -> None:
    """Take the steps in a child that keeps its compiled kernels in ``cache``.

    Raises:
        RuntimeError: the child has failed.
    """
    child = os.fork()
    if child == 0:
        os.environ |= {"FUSED_OPTIM_CACHE": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        print(json.dumps(measure(shapes)), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the steps with {cache} failed with status {status}")


if __name__ == "__main__":
    model = MODELS[MODEL].tensors(MODELS[MODEL].layers)
    smoke = "--smoke" in sys.argv
    # what torch imports for its first optimizer, once for all children
    fused_optim.SGD([torch.nn.Parameter(torch.ones(1))])
    for folder in sys.argv[1 + smoke :]:
        fork(folder, smallest(model, 12) if smoke else model)
