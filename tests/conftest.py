"""Triton chooses its interpreter when it is imported, so what is interpreted has its own process.

``pytest`` compiles the kernels: for the CPU, and for GPUs whose PTX is executed on the CPU;
``pytest --interpret`` runs the tests marked ``interpreted`` in Triton's interpreter; ``pytest -m
gpu`` runs tests on a GPU.
"""

import os
import sys

INTERPRET = "--interpret" in sys.argv
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has no arguments, but its parent's environment
    INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"
    collect_ignore = ["gpu_code"]
else:
    os.environ.pop("TRITON_INTERPRET", None)

# Triton 3.9 warns where a kernel does not say whether it wants contraction, as those of these tests
# that compile for its sake; Triton 3.10 will have another default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest  # noqa: E402  (torch imports triton)
import torch  # noqa: E402

if INTERPRET:
    import interpreter

    interpreter.install()


def pytest_addoption(parser):
    """Options of the tests."""
    group = parser.getgroup("fused_optim")
    group.addoption(
        "--interpret",
        action="store_true",
        help="run the tests marked interpreted in Triton's interpreter",
    )
    group.addoption(
        "--full",
        action="store_true",
        help="compile and execute every combination of optimizer, format and target",
    )
    group.addoption(
        "--few",
        action="store_true",
        help="compile and execute every optimizer, format and target once: for many versions",
    )
    group.addoption(
        "--shard",
        metavar="I/N",
        help="only every N-th test, from the I-th on: for a machine without pytest-xdist",
    )


def _runs(item):
    marker = item.get_closest_marker("interpreted")
    if INTERPRET:
        return marker is not None
    return marker is None or not marker.kwargs.get("only")


def pytest_collection_modifyitems(config, items):
    """Keep the tests of this process, and of one shard."""
    chosen = [item for item in items if _runs(item)]
    if config.getoption("shard"):
        index, count = map(int, config.getoption("shard").split("/"))
        if not 0 <= index < count:
            raise pytest.UsageError(f"--shard must be I/N with 0 <= I < N, got {index}/{count}")
        chosen = chosen[index::count]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The tests share the cores; small tensors gain nothing from threads."""
    torch.set_num_threads(1)
