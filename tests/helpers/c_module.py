"""Conditions of the tests that need the C module ``fused_optim._host``, or a compiler for it."""

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

import pytest

from fused_optim.private_api import dlpack_exchange_api, find

CC = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
HAS_COMPILER = (
    shutil.which(shlex.split(CC)[0]) is not None
    and Path(sysconfig.get_path("include"), "Python.h").exists()
)
HAS_C_MODULE = find("fused_optim._host", "Snapshot") is not None


def has_exchange_api() -> bool:
    """Return whether torch offers the DLPack functions that the C module calls."""
    try:
        dlpack_exchange_api()
    except ValueError:
        return False
    return True


NEEDS_C_MODULE = pytest.mark.skipif(
    not (HAS_C_MODULE and has_exchange_api()),
    reason="the C module is not built, or this torch has no DLPack exchange API",
)
