"""Scripts of torchrun in forked children of one process, which imports torch and what they need.

A process that imports torch, its engines and Triton takes seconds of CPU before it does anything;
torchrun starts one for each rank and one more. Each child here has the variables that torchrun
sets, and runs the script as ``__main__``; when one fails, the others are killed.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent.parent
LIMIT = 120  # seconds after which a script is killed
# what the scripts import, at last when they run
MODULES = (
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    "fused_optim.backends.native.compiler",
)


@contextlib.contextmanager
def start_ranks():
    """Start the process; yield ``run(count, script, *arguments)``, which is like torchrun.

    ``run`` returns stdout, stderr, and the returncode of each rank: negative for a signal, and
    -SIGTERM for those that were killed because another one had failed.
    """
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    command = [sys.executable, "-m", "helpers.processes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def run(count, script, *arguments):
        job = {"count": count, "command": [str(script), *map(str, arguments)]}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return SimpleNamespace(**json.loads(process.stdout.readline()))

    with subprocess.Popen(command, env=env, **pipes) as process:
        yield run
        process.stdin.close()


def find_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def end_child(code):
    """End this child of a fork; call it in a ``finally``, whose exception it prints."""
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work(rank, count, port, command, outputs):
    """Run a script in this process, a child, and end it."""
    for output, stream in zip(outputs, (sys.stdout, sys.stderr), strict=True):
        os.dup2(output.fileno(), stream.fileno())
    size, number = str(count), str(rank)
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size}
    os.environ |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    signal.alarm(LIMIT)
    code = 1
    try:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        # no orderly end: a thread of gloo that frees a tensor while the interpreter exits aborts it
        end_child(code)


def run_job(count, command):
    """Run a script in ``count`` children; return returncodes and what they wrote."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        ranks, codes, port = {}, [0] * count, find_port()
        for rank in range(count):
            child = os.fork()
            if child == 0:
                work(rank, count, port, command, (stdout, stderr))
            ranks[child] = rank
        while ranks:
            child, status = os.wait()
            codes[ranks.pop(child)] = os.waitstatus_to_exitcode(status)
            if status:
                for other in ranks:
                    os.kill(other, signal.SIGTERM)
        written = {}
        for name, file in (("stdout", stdout), ("stderr", stderr)):
            file.seek(0)
            written[name] = file.read()
    return {"returncodes": codes, **written}


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # so that no child looks for garbage in what was imported, nor copies it
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run_job(**json.loads(line))) + "\n")
        sys.stdout.flush()
