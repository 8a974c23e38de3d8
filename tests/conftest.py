"""Options of the tests, and the choice between compiled and interpreted kernels.

Triton chooses its interpreter when it is imported, so interpreted tests have their own process:
``pytest`` compiles the kernels for the CPU, and for GPUs whose PTX is executed on the CPU;
``pytest tests --interpret`` runs the tests marked ``interpreted`` in Triton's interpreter;
``pytest -m gpu`` runs tests on a GPU.
"""

import gc
import os
import sys
from pathlib import Path

import pytest

VARIABLE = "TRITON_INTERPRET"  # read by Triton when it is imported
GPU_CODE = Path(__file__).parent / "gpu_code"

# Triton 3.9 warns where a kernel does not say whether it wants contraction, as those of these tests
# that compile for its sake; Triton 3.10 will have another default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def pytest_addoption(parser):
    """Add the options of these tests."""
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


def pytest_configure(config):
    """Turn Triton's interpreter on for ``--interpret``, before anything imports Triton.

    Raises:
        pytest.UsageError: the variable and the option disagree, or Triton is imported already.
    """
    if not config.getoption("interpret"):
        if os.environ.get(VARIABLE, "0") != "0":
            raise pytest.UsageError(f"unset {VARIABLE}, or use --interpret, which sets it")
        return
    if "triton" in sys.modules and os.environ.get(VARIABLE) != "1":
        raise pytest.UsageError(
            "--interpret needs a process that has not imported triton yet: pytest tests --interpret"
        )
    os.environ[VARIABLE] = "1"
    from helpers import interpreter_patches

    interpreter_patches.install()


def pytest_ignore_collect(collection_path, config):
    """Leave out files of which no test is selected, as importing them takes seconds.

    In the interpreter these have no test that runs there. On a GPU (``-m gpu``) all but gpu_code.
    """
    is_test = collection_path.match("test_*.py")
    if not config.getoption("interpret"):
        in_vain = is_test and config.option.markexpr == "gpu"
        return True if in_vain and GPU_CODE not in collection_path.parents else None
    if is_test and "pytest.mark.interpreted" not in collection_path.read_text():
        return True
    return True if collection_path == GPU_CODE else None


def _runs(item, interpret):
    marker = item.get_closest_marker("interpreted")
    only = marker is not None and marker.kwargs.get("only")
    if not interpret:
        return not only
    # the reference does not use Triton: it is tested where the kernels are compiled
    backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
    return marker is not None and (only or backend != "reference")


def pytest_collection_modifyitems(config, items):
    """Select the tests of this process, and of one shard.

    Raises:
        pytest.UsageError: ``--shard`` is not I/N with 0 <= I < N.
    """
    chosen = [item for item in items if _runs(item, config.getoption("interpret"))]
    if config.getoption("shard"):
        index, count = map(int, config.getoption("shard").split("/"))
        if not 0 <= index < count:
            raise pytest.UsageError(f"--shard must be I/N with 0 <= I < N, got {index}/{count}")
        chosen = chosen[index::count]
    selected = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = chosen


def pytest_collection_finish():
    """Let no search for garbage see what is there before the first test: most of all objects."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Set torch to one thread: the tests share the cores, small tensors gain nothing from more."""
    # torch imports triton, which must not happen before pytest_configure
    import torch

    torch.set_num_threads(1)
