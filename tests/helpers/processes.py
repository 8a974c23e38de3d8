"""Programs in several processes, started by torchrun on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def torchrun(count, *command, timeout=120):
    """Run a script with arguments in ``count`` processes, with a free port; return the result."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    command = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
