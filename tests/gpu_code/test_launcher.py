"""Launches through Triton's own drivers, and through the C code that packs their arguments.

The vendor's library is a stub of ci/driver_stubs, which passes launches to the PTX interpreter, or
for AMD only records them. The tests run with every version of Triton that the project supports:
``PYTHONPATH=<folder of that triton> pytest tests/gpu_code/test_launcher.py``.

Tried by hand: in the backend, a width or a None left out of the key of cached kernels; later
launches with two arguments exchanged, without the constants, one program short, or always on the
default stream; no device guard; record_stream left out, or of the current device's stream; count
and rows of prepare exchanged; launches of no programs. In Triton, int64 packed as int32, and two
arguments exchanged, for either vendor.
"""

import contextlib
import mmap
import struct

import pytest
import torch
import triton
from gpu_code.launches import (
    BF16,
    CASES,
    THREE,
    StubPair,
    assert_packed,
    each_vendor,
    names,
    needs_compiler,
    pointers,
)
from helpers.models import set_grads, values

import fused_optim
from ci import driver_stubs
from fused_optim.backends.triton import CachedKernel
from fused_optim.testing.closeness import assert_same_bits

pytestmark = needs_compiler
# arguments that are kept from step to step
TABLES = ["table_ptr", "first_ptr", "span_ptr", "group_ptr", "option_ptr", "state_ptr"]


@contextlib.contextmanager
def same_memory():
    """Make every torch.empty of one size and dtype return the same memory."""
    empty, pool = torch.empty, {}

    def reused(*size, **options):
        key = str((size, sorted(options.items(), key=str)))
        return pool.setdefault(key, empty(*size, **options))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "empty", reused)
        yield


@contextlib.contextmanager
def asked_of_triton():
    """Yield the list of launches through Triton's JIT: function, arguments and options."""
    run, found = triton.JITFunction.run, []

    def spy(self, *args, **options):
        found.append((self, args, options))
        return run(self, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(triton.JITFunction, "run", spy)
        yield found


@pytest.mark.parametrize("case", CASES)
def test_every_kernel_gives_the_bits_of_the_reference(case):
    pair = StubPair(case)
    with driver_stubs.cuda() as driver:
        for _ in range(3):
            pair.step()
    pair.check(driver)
    assert sorted(names(driver.launches)) == sorted(3 * pair.kernels)
    for launch in driver.launches:
        assert_packed(launch)
    if case == "rmsprop-stalled":
        assert pair.kernel.stalled == pair.reference.stalled > 0


@each_vendor
@pytest.mark.parametrize("case", ["adamw", "lamb"])
def test_later_launches_hand_over_what_the_first_does(case, stub):
    """Check that launches from the cache have the kernel and the bytes of the first launch."""
    pair = StubPair(case)
    with stub():
        pair.step()  # makes the state and the tables
    pair.set_grads()
    with stub() as driver, same_memory(), asked_of_triton() as asked:
        pair.kernel.step()
        assert [function.fn.__name__ for function, _, _ in asked] == pair.kernels
        pair.kernel.step()
        assert len(asked) == len(pair.kernels)
        threads = 4 * driver.get_current_target().warp_size
    first, later = driver.launches[: len(asked)], driver.launches[len(asked) :]
    assert names(first) == pair.kernels
    for one, other in zip(first, later, strict=True):
        assert one[:-1] == other[:-1]
        assert_packed(one)
        assert one.block == (threads, 1, 1)


@each_vendor
def test_arguments_that_are_none(stub):
    """Check that missing norm, scaler and counters are no parameters of the kernels."""
    pairs = (
        StubPair("adamw", max_grad_norm=None),
        StubPair("sgd-skip", nonfinite="propagate", momentum=0),
    )
    with stub() as driver:
        for pair in pairs:
            pair.step()
            pair.check(driver)
    found = [[argument.name for argument in launch.arguments] for launch in driver.launches]
    rest = ["group_ptr", "option_ptr", "scalar_ptr", "report_ptr", "partials", "n_rows"]
    update = ["table_ptr", "first_ptr", "span_ptr", "scalar_ptr"]
    assert found == [["state_ptr", *rest], update, rest, update]
    for launch in driver.launches:
        assert_packed(launch)


@each_vendor
def test_a_grad_scaler(stub):
    """Check that scale and flag come between options and scalars, and that an Inf skips."""
    pair = StubPair("adamw", max_grad_norm=1000.0)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    with stub() as driver:
        for step in range(3):
            pair.set_grads()
            sides = (pair.kernel, pair.params), (pair.reference, pair.others)
            for scaler, (optimizer, params) in zip(scalers, sides, strict=True):
                set_grads(params, [scaler.scale(p.grad) for p in params])
                if step == 1:
                    params[1].grad[3] = torch.inf
                scaler.step(optimizer)
                scaler.update()
        for step in range(3):  # without a scaler, with a scale only, with a flag only
            for optimizer in (pair.kernel, pair.reference):
                optimizer.grad_scale = torch.tensor([2.0]) if step == 1 else None
                optimizer.found_inf = torch.tensor([0.0]) if step == 2 else None
            pair.step()
    pair.check(driver)
    if driver.executes:
        assert pair.kernel.state[pair.params[0]]["step"] == 5
    for launch in driver.launches:
        assert_packed(launch)
    prepares = driver.launches[1::3]
    found = [[argument.name for argument in prepare.arguments] for prepare in prepares]
    scaled, plain = found[2], found[3]
    assert scaled == [*plain[:4], "scale_ptr", "found_inf_ptr", *plain[4:]]
    assert [[name for name in scaled if name not in other] for other in found[3:]] == [
        ["scale_ptr", "found_inf_ptr"],
        ["found_inf_ptr"],
        ["scale_ptr"],
    ]


def sparse(numel, dtype):
    """Return zeros whose pages are allocated at the first access."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, numel * dtype.itemsize, flags), dtype=dtype)


def norm_of_a_step():
    """Return the function of the kernel norm, and the backend's constants and options for it."""
    with asked_of_triton() as asked:
        StubPair("adamw").step()
    function, _, options = asked[0]
    return function, {k: v for k, v in options.items() if k not in ("grid", "warmup")}


def norm_arguments(fixed, chunks, programs, grad):
    """Return the arguments of norm for a row of one element and one with ``grad``, the last."""
    table = torch.zeros(2, fixed["WIDTH"], dtype=torch.int64)
    table[:, 0], table[:, 2 + fixed["GRAD"]] = torch.tensor([1, len(grad)]), grad.data_ptr()
    firsts = torch.tensor([0, chunks - 1, chunks])
    spans = sparse(-(-chunks // fixed["CHUNKS_PER_SPAN"]) + 1, torch.int32)
    spans[-1] = 1
    return table, firsts, spans, sparse(2 * programs, torch.float64), chunks


@each_vendor
def test_empty_grids(stub):
    """Check that launches without programs do not reach the driver."""
    pair = StubPair("adamw", shapes=[(0,), (0, 3)])
    with stub() as driver:
        with asked_of_triton() as asked:
            pair.step()
        assert names(driver.launches) == ["prepare"]
        assert len(asked) == 1  # nothing is compiled either
        partials = driver.launches[0].arguments[0]
        assert (partials.name, partials.value.shape) == ("partial_ptr", (0, 2))
        assert_packed(driver.launches[0])
        norm, fixed = norm_of_a_step()
        before = len(driver.launches)
        norm[(0,)](*norm_arguments(fixed, 7, 4, torch.ones(500)), **fixed)
        assert len(driver.launches) == before
    if driver.executes:
        assert pair.kernel.grad_norm == 0


@each_vendor
def test_a_count_past_two_to_the_31(stub):
    """Check that an int64 count compiles another kernel, which gets eight bytes."""
    chunks, programs, grad = 2**31 + 5, 2**31 - 1, torch.full((500,), 2.0)
    with stub():
        norm, fixed = norm_of_a_step()
    narrow = norm_arguments(fixed, 7, 4, grad)
    wide = norm_arguments(fixed, chunks, programs, grad)
    with stub() as driver:
        driver.blocks = lambda name, count: [5 if count == programs else 2]
        ready = CachedKernel(norm, fixed)
        for _ in range(2):  # each once through Triton and once past it
            ready.launch(4, *narrow)
            wide[3][10] = 0
            ready.launch(programs, *wide)
            # program 5 has the chunks 5 and 2**31 + 4, which is the last
            assert wide[3][10] == (500 * 4 if driver.executes else 0)
    assert narrow[3][4] == (500 * 4 if driver.executes else 0)
    assert [launch.grid[0] for launch in driver.launches] == [4, programs] * 2
    for launch in driver.launches:
        assert_packed(launch)
    found = [launch.parameters[4] for launch in driver.launches]
    assert found == [struct.pack("<i", 7), struct.pack("<q", chunks)] * 2


@each_vendor
def test_two_counts_past_two_to_the_31(stub):
    """Check the packed arguments for counts that are too large to run the kernel."""
    pair = StubPair("adamw")
    with stub() as driver, asked_of_triton() as asked:
        driver.blocks = lambda name, count: []
        pair.step()
        prepare, args, options = asked[1]
        prepare.run(*args[:-2], 2**31, 2**40 + 7, **options)
        prepare.run(*args[:-2], 2**31 - 1, 2**40 + 7, **options)
    for launch in driver.launches:
        assert_packed(launch)
    *_, both, one = [[len(value) for value in launch.parameters] for launch in driver.launches]
    assert both[6:8] == [8, 8]
    assert one[6:8] == [4, 8]


def test_offsets_and_places_past_two_to_the_31():
    """Check offsets of elements in a tensor, and of a shard, on which the noise depends."""
    far, tail, found = 2**31 + 1024, 2 * 1024 + 500, []
    for backend, before, place in (
        ("triton", far, 2**40),
        ("reference", 0, 2**40 + far),
        ("reference", 0, far),
    ):
        param, grad = (sparse(before + tail, BF16) for _ in range(2))
        param[before:], grad[before:] = values([tail, tail], BF16)
        param = torch.nn.Parameter(param)
        optimizer = fused_optim.SGD([param], lr=0.1, weights="stochastic", backend=backend)
        optimizer.shard(param, index=3, offset=place, numel=2**41)
        param.grad = grad
        with driver_stubs.cuda() as driver:
            driver.blocks = lambda name, count: range(max(count - 3, 0), count)
            optimizer.step()
        found.append(param.detach()[before:])
        if backend == "triton":
            assert driver.launches[-1].grid[0] == far // 1024 + 3
            assert not param[:4096].any()
    assert_same_bits("param", found[0], found[1])
    assert not torch.equal(found[1], found[2])


@each_vendor
def test_the_device_of_the_parameters_and_its_current_stream(stub):
    """Check them for every current device, and that torch knows the streams that use a table."""
    with stub() as driver, driver_stubs.pretended(driver) as devices:
        here, there = driver.devices
        pair = StubPair("adamw", put=lambda tensor, i: devices.put(tensor, there))
        streams = [0, driver.new_stream(there), driver.new_stream(there)]
        for stream, current in zip(streams, (here, here, there), strict=True):
            driver.streams.update({there: stream, here: driver.new_stream(here)})
            with driver.on(current):
                pair.step()
            assert driver.get_current_device() == here
        pair.check(driver)
        for i, launch in enumerate(driver.launches):
            assert (launch.device, launch.stream) == (there, streams[i // 3])
            assert {tensor.device.index for tensor in pointers(launch)} == {there}
            used = {a.value.data_ptr() for a in launch.arguments if a.name in TABLES}
            assert set() < used <= devices.recorded[launch.stream]
    assert names(driver.launches) == 3 * THREE


@each_vendor
def test_parameters_on_two_devices(stub):
    """Check that each device has launches on its stream, and that the norm covers all."""
    with stub() as driver, driver_stubs.pretended(driver) as devices:
        pair = StubPair("adamw", put=lambda tensor, i: devices.put(tensor, driver.devices[i % 2]))
        driver.streams.update({device: driver.new_stream(device) for device in driver.devices})
        for _ in range(2):
            pair.step()
        pair.check(driver)
        for launch in driver.launches:
            assert launch.stream == driver.streams[launch.device]
            assert {tensor.device.index for tensor in pointers(launch)} == {launch.device}
    for device in driver.devices:
        own = [launch for launch in driver.launches if launch.device == device]
        assert sorted(names(own)) == sorted(2 * THREE)
