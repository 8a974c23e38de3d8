"""Triton's front end alone: no device, no driver and no stage after TTIR.

Faults tried by hand: ``triton.compile`` in its place; the check for the interpreter left out.
"""

import pytest
import triton
from native.kernels import Case, source
from triton.runtime.interpreter import InterpretedFunction

from fused_optim.backends.native import frontend
from fused_optim.kernels.norm import norm


class Untouchable:
    def __getattribute__(self, name):
        raise AssertionError(f"the driver was asked for {name}")


@pytest.fixture
def driver():
    """Make a driver that must not be asked Triton's active one."""
    before, driver = dict(vars(triton.runtime.driver)), Untouchable()
    triton.runtime.driver.set_active(driver)
    yield driver
    vars(triton.runtime.driver).update(before)


def test_no_driver_is_asked_and_no_cache_is_written(driver, tmp_path, monkeypatch):
    """Guard against later stages, which ask the driver, look for ptxas and write a cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(tmp_path / "none"))
    ttir = frontend.make_ttir(*source(Case("norm", "sgd", "fp32").key, "norm"))
    assert ttir.startswith("module {")
    assert "tt.func public @norm(" in ttir
    assert "ttg." not in ttir
    assert triton.runtime.driver.active is driver
    assert not list(tmp_path.iterdir())


def test_the_interpreter_is_named():
    """With the function that ``triton.jit`` makes where TRITON_INTERPRET is set."""
    words = r"norm is no jit function: Triton's interpreter is on \(TRITON_INTERPRET\)"
    with pytest.raises(RuntimeError, match=words):
        frontend.make_ttir(InterpretedFunction(norm.fn), {}, {})


def test_the_writer_is_named():
    assert frontend.writer() == f"triton {triton.__version__}"
