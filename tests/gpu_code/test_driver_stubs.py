"""Stubs of the vendors' libraries: errors of a launch are detected and reported.

Tried by hand: each check of a launch left out; AMD's arguments packed without padding; a second
library of the same name loaded; tensors that keep their device when they are copied to the CPU.
"""

import pytest
import torch
import triton
import triton.language as tl
from gpu_code.launches import EVERY, HIP, StubPair, each_vendor, needs_compiler

from ci import driver_stubs
from ci.driver_stubs.library import Library, build

pytestmark = needs_compiler


def exchanged(kernel, i):
    """Return a change of launches: exchange parameters ``i`` and ``i + 1`` of ``kernel``."""

    def change(launch):
        found = list(launch.parameters)
        if launch.kernel.name == kernel:
            found[i], found[i + 1] = found[i + 1], found[i]
        return launch._replace(parameters=tuple(found))

    return change


def is_right(pair, driver):
    """Return True if a step succeeds with the bits of the reference."""
    try:
        pair.step()
        pair.check(driver)
    except (RuntimeError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("kernel", EVERY)
def test_a_wrong_order_of_the_parameters_is_noticed(kernel):
    """Check that after each exchange the launch fails or the bits differ."""
    with driver_stubs.cuda() as driver:
        assert is_right(StubPair("lamb", shapes=[(5,), (1025,)]), driver)
        launch = next(launch for launch in driver.launches if launch.kernel.name == kernel)
        for i in range(len(launch.arguments) - 1):
            driver.change = exchanged(kernel, i)
            assert not is_right(StubPair("lamb", shapes=[(5,), (1025,)]), driver), i


def without_upper_half(launch):
    pointer, *rest = launch.parameters
    return launch._replace(parameters=(pointer[:4] + bytes(4), *rest))


CHANGES = {
    "widths": lambda launch: launch._replace(parameters=launch.parameters[1:]),
    "block": lambda launch: launch._replace(block=(64, 1, 1)),
    "shared memory": lambda launch: launch._replace(shared=launch.shared + 1),
    "stream": lambda launch: launch._replace(stream=7),
    "device": lambda launch: launch._replace(device=launch.device + 1),
    "grid": lambda launch: launch._replace(grid=(0, 1, 1)),
    "out of bounds": without_upper_half,
}
WRONG = [pytest.param(driver_stubs.cuda, what, id=f"cuda-{what}") for what in CHANGES]
# only the kernel detects the last one
WRONG += [
    pytest.param(driver_stubs.hip, what, id=f"hip-{what}", marks=HIP.marks)
    for what in list(CHANGES)[:-1]
]


@pytest.mark.parametrize(("stub", "what"), WRONG)
def test_a_launch_that_goes_wrong_is_an_error_of_triton(stub, what):
    """Check that Triton reports it like an error of the real library, with the reason as cause."""
    pair = StubPair("adamw")
    with stub() as driver:
        driver.change = CHANGES[what]
        with pytest.raises(RuntimeError, match=rf"Triton Error \[(CUDA|HIP)\].*{what}") as caught:
            pair.step()
    assert what in str(caught.value.__cause__)


FILL = {"BLOCK": 128, "enable_fp_fusion": False}


@triton.jit
def fill(out_ptr, value, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), value)


def test_a_launch_of_another_sort_is_refused():
    """Guard against launch attributes, such as a cooperative launch, that the stub ignores."""
    out = torch.zeros(128)
    with driver_stubs.cuda() as driver:
        fill[(1,)](out, 2.5, **FILL)
        with pytest.raises(RuntimeError, match="number of launch attributes is 1"):
            fill[(1,)](out, 3.5, **FILL, launch_cooperative_grid=True)
    assert (out == 2.5).all()
    assert [argument.type for argument in driver.launches[0].arguments] == ["*fp32", "fp32"]


@each_vendor
def test_another_function_is_refused(stub, monkeypatch):
    """Check a function that was never loaded, and one with more parameters than are packed."""
    out = torch.zeros(128)
    with stub() as driver:
        fill[(1,)](out, 2.5, **FILL)
        known = driver.library.functions
        monkeypatch.setattr(driver.library, "functions", {})
        with pytest.raises(RuntimeError, match="no function has the handle 0x"):
            fill[(1,)](out, 2.5, **FILL)
        wider = {key: kernel._replace(widths=kernel.widths * 2) for key, kernel in known.items()}
        monkeypatch.setattr(driver.library, "functions", wider)
        with pytest.raises(RuntimeError, match="2 arguments and"):
            fill[(1,)](out, 2.5, **FILL)


def test_tensors_that_pretend():
    """Check that results are on the device of their operands, and copies on the requested one."""
    with driver_stubs.cuda() as driver, driver_stubs.pretended(driver) as devices:
        first, second, host = torch.ones(4), torch.ones(4), torch.ones(4)
        assert devices.put(first, 0) is first
        devices.put(second, 1)
        where = torch.device("cuda", 1)
        made = (second[1:], second * 2, torch.zeros_like(second), torch.empty(3, device=where))
        assert {str(tensor.device) for tensor in made} == {"cuda:1"}
        copy = second.to("cpu")
        assert (str(copy.device), str(second.to(torch.float64).device)) == ("cpu", "cuda:1")
        assert copy.data_ptr() != second.data_ptr() == second.to(where).data_ptr()
        assert str(host.pin_memory().to("cuda:0", non_blocking=True).device) == "cuda:0"
        assert str(first.copy_(second).device) == "cuda:0"
        for other in (second, host):
            with pytest.raises(RuntimeError, match="different devices"):
                first + other
        assert str((first + torch.tensor(1.0)).device) == "cuda:0"
        with pytest.raises(RuntimeError, match="invalid device 2"):
            torch.empty(3, device="cuda:2")
    assert str(second.device) == "cpu"


@each_vendor
def test_a_second_library_of_the_name_is_refused(stub):
    with stub() as driver, pytest.raises(RuntimeError, match=r"lib.* is loaded in this process"):
        Library(driver.library.path, print)


def test_a_host_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert driver_stubs.c_compiler() is None
    with pytest.raises(RuntimeError, match=r"libcuda\.so\.1 needs a C compiler"):
        build("cuda.c", "libcuda.so.1", "libcuda.so", tmp_path)
