"""Programs in processes of their own, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(*command, **variables):
    """Run Python with these arguments in the checkout, as ci/trainers.sh does."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
