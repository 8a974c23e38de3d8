"""Triton's front end alone: no device, no driver and no stage after TTIR.

Faults tried by hand: ``triton.compile`` in its place; the check for the interpreter left out.
"""

import os
import subprocess
import sys
from pathlib import Path

import triton

from fused_optim.backends.native import frontend

TESTS = Path(__file__).parents[1]


ALONE = """
import triton
from native.kernels import Case, source
from fused_optim.backends.native import frontend

class Untouchable:
    def __getattribute__(self, name):
        raise AssertionError(f"the driver was asked for {name}")

driver = Untouchable()
triton.runtime.driver.set_active(driver)
ttir = frontend.make_ttir(*source(Case("norm", "sgd", "fp32").key, "norm"))
assert ttir.startswith("module {")
assert "tt.func public @norm(" in ttir
assert "ttg." not in ttir
assert triton.runtime.driver.active is driver
"""


def run(program, **environment):
    """Run a program; return its output."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_driver_is_asked_and_no_cache_is_written(tmp_path):
    """Guard against later stages, which ask the driver, look for ptxas and write a cache."""
    none = str(tmp_path / "none")
    run(ALONE, TRITON_CACHE_DIR=str(tmp_path), TRITON_PTXAS_PATH=none)
    assert not list(tmp_path.iterdir())


PROGRAM = """
from fused_optim.backends.native.frontend import make_ttir
from fused_optim.kernels.norm import norm
try:
    make_ttir(norm, {}, {})
except RuntimeError as error:
    print(error)
"""


def test_the_interpreter_is_named():
    result = run(PROGRAM, TRITON_INTERPRET="1")
    assert "norm is no jit function: Triton's interpreter is on (TRITON_INTERPRET)" in result


def test_the_writer_is_named():
    assert frontend.writer() == f"triton {triton.__version__}"
