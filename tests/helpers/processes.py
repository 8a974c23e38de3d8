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


def check_end(result):
    """Assert that the processes have ended by themselves, after everything was printed.

    torch keeps process groups (in the default arguments of torch.distributed.nn, in the caches of
    DTensor), so gloo's threads outlive destroy_process_group(); one that frees a tensor while the
    interpreter exits aborts the process, with torch.optim as well.
    """
    aborted = "terminate called without an active exception" in result.stderr
    assert result.returncode == 0 or aborted, result.stderr
