"""Run the code blocks of docs/distributed.md as one program; helpers/processes.py starts it.

In the sections before Checkpoints, an optimizer that clips must have, in the last step of its
block, the norm of torch.optim in one process. The first process prints what was run.
"""

import os
import re
import sys
from pathlib import Path

import torch

PAGE = Path(__file__).parent.parent.parent / "docs" / "distributed.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def list_blocks(text):
    """Yield the line number of each block and its code."""
    for found in BLOCK.finditer(text):
        yield text[: found.start(1)].count("\n") + 1, found[1]


def reference_norm(names):
    """Return the norm in the third step of torch.optim.AdamW in one process."""
    model = names["create_model"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(names["inputs"]), names["targets"]).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return norm.item()


def is_norm_equal(optimizer, expected, tolerance):
    """Return True for the norm of one process; None if the optimizer has taken no step."""
    norm = getattr(optimizer, "optim", optimizer).grad_norm
    return None if norm is None else abs(norm.item() / expected - 1) < tolerance


def main():
    """Run every block, with the names of those before."""
    text = PAGE.read_text()
    end = text[: text.index("\n## Checkpoints")].count("\n")
    names, expected = {"__name__": "page"}, None
    for line, code in list_blocks(text):
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), names)
        expected = expected or reference_norm(names)
        equal = None
        if "optimizer = " in code and line < end:
            tolerance = 0.1 if "bfloat16" in code else 1e-5
            equal = is_norm_equal(names["optimizer"], expected, tolerance)
        if names["rank"] == 0:
            sys.stdout.write(f"line {line}: norm equal: {equal}\n")
    names["dist"].barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process at its exit


if __name__ == "__main__":
    main()
