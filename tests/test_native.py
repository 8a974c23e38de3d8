"""Tests of the native backend: threads, forks, interrupts, the GIL and missing compilers.

Its bits are compared with the reference in tests/test_kernels_vs_reference.py; machine code, memory
safety and the cache are tested in tests/native. Faults tried by hand: one program left out for each
thread; programs taken without an atomic operation; the pool kept after a fork; a launch that does
not wait for its threads; a compile error raised after the counters have moved.
"""

import ctypes
import importlib
import importlib.util
import logging
import multiprocessing
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers.models import KERNELS, parameters, set_grads, state_of, values

import fused_optim
from fused_optim.backends import select
from fused_optim.backends.base import CompileError
from fused_optim.testing.closeness import assert_same_bits

pytestmark = pytest.mark.skipif(KERNELS != "native", reason="Triton's interpreter runs the kernels")

if KERNELS == "native":
    from fused_optim.backends.native import executor, image, threads

SIZES = [300_000, 1, 0, 5000, 70_001]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run(steps=3, sizes=SIZES, cls=fused_optim.AdamW, **options):
    """Return parameters and states after some steps."""
    params = parameters(values(sizes, torch.float32))
    optimizer = cls(params, lr=0.1, max_grad_norm=1.0, backend="native", **options)
    for step in range(steps):
        set_grads(params, values(sizes, torch.float32, 10 + step))
        optimizer.step()
    states = [value for p in params for value in state_of(optimizer, p).values()]
    return [p.detach() for p in params] + states + [optimizer.grad_norm]


def assert_all_same(ours, theirs):
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_same_bits(str(i), mine, other)


@pytest.mark.parametrize("cls", [fused_optim.AdamW, fused_optim.LAMB])
def test_bits_do_not_depend_on_the_number_of_threads(cls, two_threads):
    two = run(cls=cls)
    for count in (1, 3, 8):
        torch.set_num_threads(count)
        assert_all_same(run(cls=cls), two)


def test_small_work_runs_in_the_caller(two_threads, monkeypatch):
    counts = []
    original = threads.run

    def spy(*args):
        counts.append(args[-1])
        return original(*args)

    monkeypatch.setattr(threads, "run", spy)
    run(steps=1, sizes=[100, 200])
    assert counts == [1, 1, 1]
    counts.clear()
    run(steps=1, sizes=[2_000_000])
    assert counts == [2, 1, 2]  # norm, begin, update
    counts.clear()
    torch.set_num_threads(1)
    run(steps=1, sizes=[2_000_000])
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("openmp", [True, False])
def test_every_program_runs_once_whoever_runs_it(two_threads, monkeypatch, openmp):
    """Guard against a program run twice or never, with many small rows."""
    monkeypatch.setattr(executor, "NS_PER_THREAD", 1.0)
    if not openmp:
        monkeypatch.setattr(threads, "_openmp_parallel", lambda: None)
    torch.set_num_threads(4)
    sizes = [1 + i % 90 for i in range(3000)]
    many = run(steps=2, sizes=sizes)
    torch.set_num_threads(1)
    assert_all_same(many, run(steps=2, sizes=sizes))


def test_a_process_without_openmp_has_threads_of_its_own(two_threads, monkeypatch):
    expected = run()
    monkeypatch.setattr(threads, "_openmp_parallel", lambda: None)
    monkeypatch.setattr(threads._Process, "pool", None)
    assert_all_same(run(), expected)
    assert threads._Process.pool is not None


def test_the_openmp_of_torch_goes_before_those_of_others():
    own = str(Path(torch.__file__).parent / "lib" / "libgomp.so.1")
    assert threads._torchs_first(["/usr/lib/libgomp.so.1", own])[0] == own
    assert threads._torchs_first(["/usr/lib/libgomp.so.1"]) == ["/usr/lib/libgomp.so.1"]


def test_an_interrupt_does_not_leave_threads_behind():
    """Guard against threads that still write after the caller went on."""
    done = threading.Event()
    caller = threading.get_ident()

    def kernel(launch):
        if threading.get_ident() == caller:
            raise KeyboardInterrupt
        time.sleep(0.2)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        threads._run_in_pool(kernel, 0, 2)
    assert done.is_set()


def test_a_forked_process_steps_too(two_threads):
    """Guard against a pool used after a fork, where GNU's OpenMP hangs."""
    expected = run()
    param = parameters(values([300_000], torch.float32))[0]
    param.grad = values([300_000], torch.float32, 1)[0]
    other = parameters([param])[0]
    other.grad = param.grad.clone()
    optimizers = [fused_optim.AdamW([p], lr=0.1, backend="native") for p in (param, other)]
    for optimizer in (*optimizers, optimizers[0]):
        optimizer.step()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child():
        optimizers[1].step()
        theirs.send_bytes(other.detach().numpy().tobytes())

    process = context.Process(target=child, daemon=True)
    process.start()
    try:
        assert ours.poll(30), "the child hangs"
        assert ours.recv_bytes() == param.detach().numpy().tobytes()
    finally:
        process.kill()
    assert_all_same(run(), expected)  # and the parent goes on


def test_optimizers_step_in_several_threads_at_once(two_threads):
    expected = run(steps=8)
    actual = {}
    others = [
        threading.Thread(target=lambda i=i: actual.update({i: run(steps=8)})) for i in range(4)
    ]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    for result in actual.values():
        assert_all_same(result, expected)
    assert len(actual) == 4


@pytest.mark.parametrize("count", [1, 2])
def test_the_gil_is_released(count, two_threads):
    """Guard against holding the GIL while machine code runs."""
    moved, stop = [0], threading.Event()

    def work():
        while not stop.is_set():
            moved[0] += 1

    sleep = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value
    other = threading.Thread(target=work)
    other.start()
    try:
        before = moved[0]
        threads.run(image.ENTRY(sleep), sleep, 300_000, count)
        assert moved[0] > before + 1
    finally:
        stop.set()
        other.join()


def test_no_thread_is_left_spinning(two_threads):
    run(sizes=[2_000_000])
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.2


def test_thousands_of_tensors_are_a_call_a_stage(monkeypatch):
    calls = []
    original = threads.run
    monkeypatch.setattr(threads, "run", lambda *args: calls.append(args) or original(*args))
    run(steps=1, sizes=[3] * 2000)
    assert len(calls) == 3


# ---- whether it can be had


def test_auto_is_native_from_the_first_element(caplog):
    params = parameters(values([1], torch.float32))
    optimizer = fused_optim.SGD(params)
    set_grads(params, values([1], torch.float32))
    with caplog.at_level(logging.INFO, "fused_optim"):
        optimizer.step()
    assert optimizer.backend_used == "native"
    assert "backend='auto' is 'native' on the CPU" in caplog.text


@pytest.mark.parametrize("package", ["llvmlite", "triton"])
def test_without_a_package_auto_is_the_reference(package, monkeypatch, caplog):
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == package else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    params = parameters(values([5], torch.float32))
    set_grads(params, values([5], torch.float32))
    optimizer = fused_optim.SGD(params)
    with caplog.at_level(logging.INFO, "fused_optim"):
        optimizer.step()
    assert optimizer.backend_used == "reference"
    assert f"{package} is not installed" in caplog.text
    with pytest.raises(RuntimeError, match=rf"{package} is not installed.*fused-optim\[cpu\]"):
        fused_optim.SGD(params, backend="native").step()


def test_another_processor_has_the_reference(monkeypatch):
    from fused_optim.backends.native import levels

    def level():
        raise levels.NoNativeCode("there is no code for a VAX")

    monkeypatch.setattr(levels, "level", level)
    assert select.resolve("auto", torch.device("cpu")) == "reference"
    with pytest.raises(RuntimeError, match="'native' cannot be used: there is no code for a VAX"):
        select.resolve("native", torch.device("cpu"))


def failing(self, name, constexprs):
    raise CompileError("triton 9.9 writes `tt.foo`, which the native backend does not know")


def test_what_cannot_be_compiled_is_left_to_the_reference_with_one_warning():
    start, grads = values([5], torch.float32), values([5], torch.float32, 1)
    params, others = parameters(start), parameters(start)
    ours = fused_optim.AdamW(params)
    theirs = fused_optim.AdamW(others, backend="reference")
    with mock.patch.object(executor.NativeExecutor, "_compile", failing):
        for step in range(3):
            set_grads(params, grads)
            set_grads(others, grads)
            if step == 0:
                with pytest.warns(UserWarning, match="'reference' from now on: triton 9.9 writes"):
                    ours.step()
            else:
                ours.step()
            theirs.step()
    assert ours.backend_used == "reference"
    assert_same_bits("param", params[0].detach(), others[0].detach())
    assert ours.state[params[0]]["step"] == 3


def test_native_by_name_raises_and_changes_nothing():
    params = parameters(values([5], torch.float32))
    before = params[0].detach().clone()
    optimizer = fused_optim.AdamW(params, backend="native", max_grad_norm=1.0)
    set_grads(params, values([5], torch.float32, 1))
    with (
        mock.patch.object(executor.NativeExecutor, "_compile", failing),
        pytest.raises(CompileError, match=r"tt\.foo"),
    ):
        optimizer.step()
    assert torch.equal(params[0], before)
    assert optimizer.state[params[0]]["step"] == 0
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1


def test_the_default_dtype_of_torch_does_not_matter():
    """Guard against default values of the kernels in another dtype than they read."""
    expected = run(steps=1, sizes=[100])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = run(steps=1, sizes=[100])
    finally:
        torch.set_default_dtype(before)
    # but for the count, which has the default dtype, as in torch
    assert_all_same([found[0], found[-1]], [expected[0], expected[-1]])


def test_a_gpu_has_no_native_backend():
    with pytest.raises(RuntimeError, match="it is for the CPU and the parameters are on meta"):
        select.resolve("native", torch.device("meta"))


def test_one_compilation_serves_every_step(monkeypatch):
    """Guard against a compilation for absent norms, scalers or reports."""
    names = []
    original = executor.NativeExecutor._compile

    def spy(self, name, constexprs):
        names.append(name)
        return original(self, name, constexprs)

    monkeypatch.setattr(executor.NativeExecutor, "_compile", spy)
    params = parameters(values([5, 6], torch.float32))
    optimizer = fused_optim.AdamW(params, backend="native")
    scaler = SimpleNamespace(scale=torch.tensor([4.0]), found_inf=torch.tensor([0.0]))
    for norm, scaled in ((None, False), (1.0, False), (1.0, True), (None, True)):
        optimizer.max_grad_norm = norm
        set_grads(params, values([5, 6], torch.float32, 3))
        optimizer.grad_scale = scaler.scale if scaled else None
        optimizer.found_inf = scaler.found_inf if scaled else None
        optimizer.step()
        assert optimizer.grad_norm.isnan() == (norm is None)
    assert names == ["norm", "prepare", "update"]


def test_without_the_private_module_of_triton_auto_is_the_reference(monkeypatch):
    from fused_optim import private_api
    from fused_optim.backends.native import compiler

    monkeypatch.setattr(compiler.MADE, "kernels", {})
    monkeypatch.setattr(compiler.cache, "load", lambda key: None)
    find = private_api.find
    monkeypatch.setattr(private_api, "find", lambda m, n: None if n == "ir" else find(m, n))
    start, grads = values([5], torch.float32), values([5], torch.float32, 1)
    runs = []
    for backend in ("auto", "reference"):
        params = parameters(start)
        optimizer = fused_optim.AdamW(params, backend=backend)
        set_grads(params, grads)
        if backend == "auto":
            with pytest.warns(UserWarning, match=r"from now on: .*no triton\._C\.libtriton\.ir"):
                optimizer.step()
        else:
            optimizer.step()
        runs.append(params)
    assert torch.equal(runs[0][0], runs[1][0])
