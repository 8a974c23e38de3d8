"""Triton chooses its interpreter when it is imported, so each kind of test has its own process.

``pytest`` runs the kernels in the interpreter; ``pytest tests/compiled`` compiles them and
executes the PTX on the CPU; ``pytest -m gpu`` runs the same tests on a GPU.
"""

import os
import sys

ON_GPU = "-m gpu" in " ".join(sys.argv[1:]).replace("-mgpu", "-m gpu")
COMPILED = ON_GPU or any("compiled" in argument for argument in sys.argv[1:])
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has no arguments, but its parent's environment
    COMPILED = "TRITON_INTERPRET" not in os.environ
if COMPILED:
    os.environ.pop("TRITON_INTERPRET", None)
    collect_ignore_glob = ["test_*.py", "contract/*"]
else:
    os.environ["TRITON_INTERPRET"] = "1"
    collect_ignore = ["compiled"]

# Triton 3.9 warns where a kernel does not say whether it wants contraction, as those of these tests
# that compile for its sake; Triton 3.10 will have another default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest  # noqa: E402  (torch imports triton)
import torch  # noqa: E402

if not COMPILED:
    import interpreter

    interpreter.install()


def pytest_addoption(parser):
    """Options of tests/compiled."""
    group = parser.getgroup("fused_optim")
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


def pytest_collection_modifyitems(config, items):
    """Keep the tests of one shard."""
    if config.getoption("shard"):
        index, count = map(int, config.getoption("shard").split("/"))
        if not 0 <= index < count:
            raise pytest.UsageError(f"--shard must be I/N with 0 <= I < N, got {index}/{count}")
        kept = items[index::count]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The tests share the cores; small tensors gain nothing from threads."""
    torch.set_num_threads(1)
