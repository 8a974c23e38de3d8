"""Every fault that the interpreter finds, provoked once, with its location."""

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from ci import ptxsim
from ci.ptxsim.tests.snippets import apply, module

X = np.arange(64, dtype=np.int32)


def fault(kind, code, *inputs, out="i4", **options):
    """Return the fault that a snippet raises."""
    with pytest.raises(ptxsim.Fault, match=kind) as found:
        apply(code, *(inputs or (X,)), out=out, **options)
    return found.value


@triton.jit
def double(x_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, 2 * tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)


@triton.jit
def double_at(address_ptr, BLOCK: tl.constexpr):
    pointer = tl.load(address_ptr).to(tl.pointer_type(tl.float32))
    pointer = tl.multiple_of(pointer, 16) + tl.arange(0, BLOCK)
    tl.store(pointer, 2 * tl.load(pointer))


def test_out_of_bounds_names_the_thread_and_the_address():
    x = torch.ones(1000)
    with ptxsim.install(90):
        double[(8,)](x, 1000, BLOCK=128)
        with pytest.raises(ptxsim.Fault, match="access of 4 bytes out of bounds") as found:
            double[(8,)](x, 1001, BLOCK=128)
    place = found.value.place
    assert (place.kernel, place.block, place.thread) == ("double", 7, 1000 % 128)
    assert place.address == x.data_ptr() + 4000
    assert "ld.global.b32" in place.text
    text = str(found.value)
    for part in ("kernel double", f"PTX line {place.line}", "block 7, thread 104", "address 0x"):
        assert part in text


def test_a_tensor_that_is_gone():
    x, tables = torch.ones(1 << 22), torch.zeros(1, dtype=torch.int64)
    tables[0] = x.data_ptr()
    with ptxsim.install(90):
        double_at[(1,)](tables, BLOCK=512)
        del x
        with pytest.raises(ptxsim.Fault, match="access of 16 bytes out of bounds"):
            double_at[(1,)](tables, BLOCK=512)


def test_out_of_bounds_store():
    found = fault("out of bounds .store.", "st.global.b32 [%at_y0 + 1048576], %x0; mov.b32 %y0, 0;")
    assert (found.place.block, found.place.thread) == (0, 0)


@pytest.mark.parametrize("address", [0, 8, 2**63 - 8, 2**64 - 8])
def test_addresses_that_nothing_has(address):
    code = f"mov.b64 %d1, {address}; ld.global.b64 %d2, [%d1]; mov.b32 %y0, 0;"
    assert fault("out of bounds", code).place.address == address


@pytest.mark.parametrize(
    "code",
    [
        "bar.warp.sync -1;",
        "cp.async.wait_all;",
        "redux.sync.add.s32 %r1, %x0, 15;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r1];",
    ],
)
def test_instructions_that_some_threads_only_execute_are_unsupported(code):
    with pytest.raises(ptxsim.Unsupported, match="PTX line"):
        apply(f"mov.b32 %y0, 0; setp.lt.s32 %p1, %index2, 4; @%p1 {code}", X, out="i4")


def test_misaligned_vector_access():
    x = torch.ones(513)
    with ptxsim.install(90):
        double_at[(1,)](torch.tensor([x.data_ptr()]), BLOCK=512)
        assert x.sum() == 512 * 2 + 1
        with pytest.raises(ptxsim.Fault, match="misaligned access of 16 bytes") as found:
            double_at[(1,)](torch.tensor([x.data_ptr() + 4]), BLOCK=512)
    assert found.value.place.address == x.data_ptr() + 4
    assert "ld.global.v4.b32" in found.value.place.text


def test_read_of_unwritten_memory():
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    ranges = [(array.ctypes.data, array.nbytes) for array in (x, y)]
    memory = ptxsim.Memory(ranges)
    memory.forbid_reads_before_writes(y.ctypes.data, y.nbytes)
    code = "ld.global.b32 %y0, [%at_y0];"
    ptx = module(code, [4], [4], 32, "sm_90a")
    addresses = [start for start, _ in ranges]
    with pytest.raises(ptxsim.Fault, match="read of unwritten memory"):
        ptxsim.run(ptx, (1,), 32, addresses, memory)
    code = f"mov.b32 %y0, %x0; st.global.b32 [%at_y0], %y0; {code}"
    written = module(code, [4], [4], 32, "sm_90a")
    ptxsim.run(written, (1,), 32, addresses, memory)
    np.testing.assert_array_equal(x, y)


STORE = "mul.lo.s32 %r1, %index2, 4; st.shared.b32 [%r1], %x0;"
# the offset of the next thread's element
NEXT = "add.s32 %r2, %r1, 4; and.b32 %r2, %r2, 255;"
SHARED = {"threads": 64, "shared": 256}


def test_shared_memory_race_of_a_read_with_a_write():
    found = fault(
        "race: read of another thread's write", f"{STORE}{NEXT} ld.shared.b32 %y0, [%r2];", **SHARED
    )
    assert found.place.thread == 0
    apply(f"{STORE}{NEXT} bar.sync 0; ld.shared.b32 %y0, [%r2];", X, out="i4", **SHARED)


def test_shared_memory_race_of_a_write_with_a_read():
    read = f"{STORE}{NEXT} bar.sync 0; ld.shared.b32 %y0, [%r2];"
    fault("race: write over another thread's", f"{read} st.shared.b32 [%r1], %x0;", **SHARED)
    apply(f"{read} bar.sync 0; st.shared.b32 [%r1], %x0;", X, out="i4", **SHARED)


def test_shared_memory_race_of_a_write_with_many_readers():
    read = f"{STORE} bar.sync 0; ld.shared.b32 %y0, [dynamic];"
    race = "race: write over another thread's"
    for writer in (0, 31, 63):
        one = f"setp.eq.s32 %p1, %index2, {writer}; @%p1 st.shared.b32 [dynamic], %x0;"
        fault(race, f"{read} {one}", **SHARED)
        fault(race, f"{read} bar.warp.sync -1; {one}", **SHARED)
        apply(f"{read} bar.sync 0; {one}", X, out="i4", **SHARED)
    one = "setp.eq.s32 %p1, %index2, 31; @%p1 st.shared.b32 [dynamic], %x0;"
    # with one warp, the warp's barrier is enough
    apply(f"{read} bar.warp.sync -1; {one}", X, out="i4", threads=32, shared=128)
    fault(race, f"{read} {one}", threads=32, shared=128)


def test_shared_memory_race_of_a_write_with_readers_of_two_warps():
    first = f"{STORE} bar.sync 0; setp.lt.s32 %p1, %index2, 32; mov.b32 %y0, 0;"
    low, high = "@%p1 ld.shared.b32 %y0, [dynamic];", "@!%p1 ld.shared.b32 %y0, [dynamic];"
    one = "setp.eq.s32 %p1, %index2, 63; @%p1 st.shared.b32 [dynamic], %x0;"
    code = f"{first} {low} {high} bar.warp.sync -1; {one}"
    fault("race: write over another thread's", code, **SHARED)
    apply(f"{first} {high} bar.warp.sync -1; {one}", X, out="i4", **SHARED)


def test_shared_memory_race_of_two_writes():
    code = "mov.b32 %y0, 0; st.shared.b32 [dynamic], %x0;"
    fault("two threads write one address", code, **SHARED)
    # Triton lets threads that hold the same value write it together
    apply("st.shared.b32 [dynamic], 5; mov.b32 %y0, 0;", X, out="i4", **SHARED)


def test_a_warp_barrier_orders_one_warp_only():
    within = "xor.b32 %r2, %r1, 4; bar.warp.sync -1; ld.shared.b32 %y0, [%r2];"
    apply(STORE + within, X, out="i4", **SHARED)
    across = "xor.b32 %r2, %r1, 128; bar.warp.sync -1; ld.shared.b32 %y0, [%r2];"
    fault("race: read of another thread's write", STORE + across, **SHARED)


def test_a_copy_that_was_not_waited_for():
    start = "mul.lo.s32 %r1, %index2, 4; cp.async.ca.shared.global [%r1], [%at_x0], 4;"
    wait = "cp.async.commit_group; cp.async.wait_group 0;"
    read = "ld.shared.b32 %y0, [%r1];"
    fault("read of unwritten shared memory", f"{start} {read}", **SHARED)
    fault("read of unwritten shared memory", f"{start} cp.async.wait_group 0; {read}", **SHARED)
    apply(f"{start} {wait} {read}", X, out="i4", **SHARED)
    other = "xor.b32 %r1, %r1, 4;"
    fault("race: read of another thread's write", f"{start} {wait} {other} {read}", **SHARED)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("read of unwritten shared memory", "ld.shared.b32 %y0, [dynamic];"),
        ("out of bounds of shared memory", "ld.shared.b32 %y0, [dynamic + 256];"),
        ("misaligned access of 8", "st.shared.v2.b32 [dynamic + 4], {%x0, %x0}; mov.b32 %y0, 0;"),
    ],
)
def test_shared_memory_is_bounded_and_aligned(kind, code):
    fault(kind, code, **SHARED)


def test_divergent_barrier():
    code = """
    mov.b32 %y0, 0;
    setp.lt.s32 %p1, %index2, 40;
    @%p1 bra AWAY;
    bar.sync 0;
AWAY:
    """
    found = fault("divergent barrier", code, threads=64)
    assert (found.place.thread, found.place.text) == (0, "bar.sync 0")
    fault("divergent barrier", "mov.b32 %y0, 0; setp.eq.s32 %p1, %x0, 3; @!%p1 bar.sync 0;")


@triton.jit
def write_chunks(chunk_ptr, x_ptr, BLOCK: tl.constexpr):
    chunk = tl.load(chunk_ptr + tl.program_id(0))
    tl.store(x_ptr + chunk * BLOCK + tl.arange(0, BLOCK), chunk)


@pytest.mark.parametrize("batch", [128, 1 << 15])
def test_two_blocks_that_write_one_address(batch):
    x = torch.zeros(2048, dtype=torch.int32)
    with ptxsim.install(90, threads_at_once=batch):
        write_chunks[(4,)](torch.tensor([3, 1, 2, 0]), x, BLOCK=512)
        with pytest.raises(ptxsim.Fault, match="two threads write one address") as found:
            write_chunks[(4,)](torch.tensor([3, 1, 2, 1]), x, BLOCK=512)
    assert found.value.place.block in (1, 3)
    assert re.search(r"\(block [13], thread 0", str(found.value))
    assert found.value.place.address == x.data_ptr() + 2048


def test_two_threads_that_write_one_address():
    code = "ld.param.b64 %d1, [y0]; mov.b32 %y0, 0; add.s64 %d2, %d1, 4; st.global.b32 [%d2], 7;"
    found = fault("two threads write one address", code, threads=64)
    assert found.place.block == 0
    once = f"{code[:-24]} setp.eq.s32 %p1, %index2, 1; @%p1 st.global.b32 [%d2], 7;"
    apply(once, X, out="i4", threads=64)
    # what a thread wrote itself it may write again
    apply("st.global.b32 [%at_y0], 3; mov.b32 %y0, 4;", X, out="i4", threads=64)


@triton.jit
def shift(x_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs + 1, mask=offs + 1 < n), mask=offs < n)


def test_a_block_that_reads_what_another_one_writes():
    with ptxsim.install(90):
        shift[(1,)](torch.zeros(256), 256, BLOCK=256)
        with pytest.raises(ptxsim.Fault, match="one block reads what another writes") as found:
            shift[(2,)](torch.zeros(512), 512, BLOCK=256)
    assert found.value.place.block == 0
    with ptxsim.install(90, races=False):
        shift[(2,)](torch.zeros(512), 512, BLOCK=256)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("opcode", "frobnicate.b32 %y0, %x0;"),
        ("opcode", "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%y0}, [%at_x0];"),
        ("modifier .sat", "add.sat.s32 %y0, %x0, %x0;"),
        ("modifier .rz", "add.rz.f32 %y0, %x0, %x0;"),
        ("modifier .relu", "cvt.rn.relu.bf16.f32 %h1, %x0;"),
        ("modifier .satfinite", "cvt.rn.satfinite.e4m3x2.f32 %h1, %x0, %x0;"),
        ("type .tf32", "cvt.rn.tf32.f32 %y0, %x0;"),
        ("operand", "add.s32 %y0, %x0, undeclared;"),
        ("not declared", "add.s32 %y0, %x0, %q1;"),
        ("not declared", "add.s32 %q1, %x0, 1;"),
        ("not declared", "add.s32 {%y0}, %x0, 1;"),
        ("%clock is not declared", "add.s32 %y0, %x0, %clock;"),
        ("64 bits", "add.s32 %y0, %x0, %d1;"),
        ("operands", "add.s32 %y0, %x0;"),
        ("comparison .ltu", "setp.ltu.s32 %p1, %x0, %x0;"),
        ("elements", "ld.global.v4.b32 {%r1, %r2}, [%at_x0];"),
        ("modifier .local", "ld.local.b32 %y0, [%r1];"),
        ("shuffle", "shfl.bfly.b32 %y0, %x0, 1, 31;"),
        ("barrier", "bar.red.popc.u32 %y0, 0, %p1;"),
        ("barrier", "bar.sync 1;"),
        ("copy", "cp.async.bulk.commit_group;"),
        ("call", "call.uni (retval0), vprintf, (param0, param1);"),
        ("part of a parameter", "ld.param.b64 %d1, [x0 + 4];"),
        (".local", ".local .align 16 .b8 depot[16];"),
        ("register of type .b128", ".reg .b128 %q<2>;"),
        ("register p", "{ .reg .pred p; setp.ne.b32 p, %x0, 0; }"),
    ],
)
def test_what_is_not_known_is_refused(reason, code):
    with pytest.raises(ptxsim.Unsupported, match=f"{re.escape(reason)}.* PTX line 2"):
        apply(code, X, out="i4", check=False)


def test_modules_that_are_not_known_are_refused():
    memory = ptxsim.Memory()
    ptx = module("mov.b32 %y0, 0;", [4], [4], 32, "sm_90a")
    static = ptx.replace(".extern .shared", ".shared").replace("dynamic[]", "dynamic[4]")
    for other in (
        static,
        ptx.replace(".reqntid 32", ".reqntid 32 .reqnctapercluster 2"),
        ptx.replace(".param .b64 x0", ".param .align 8 .b8 x0[16]"),
        ptx + ptx,
    ):
        with pytest.raises(ptxsim.Unsupported):
            ptxsim.run(other, (1,), 32, [0, 0], memory)
    with pytest.raises(ptxsim.Fault, match="launched with 64 threads, compiled for 32"):
        ptxsim.run(ptx, (1,), 64, [0, 0], memory)
    with pytest.raises(ptxsim.Fault, match="launched with 1 arguments, compiled for 2"):
        ptxsim.run(ptx, (1,), 32, [0], memory)
    with pytest.raises(ValueError, match="power of two"):
        ptxsim.run(ptx, (1,), 48, [0, 0], memory)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("read before it is written", "add.s32 %y0, %r1, 1;"),
        ("read before it is written", "@%p1 mov.b32 %y0, 1;"),
        ("read before it is written", "mov.b32 %r1, {%h1, %h2}; mov.b32 %y0, %r1;"),
        (
            "read before it is written",
            "mov.b16 %h1, 7; mov.b32 %r1, {%h1, %h2}; mov.b32 {%h3, %h4}, %r1; mov.b32 %y0, %r1;",
        ),
        (
            "read before it is written",
            "mov.b16 %h1, 7; mov.b32 %r1, {%h1, %h2}; mov.b32 {_, %h4}, %r1; mov.b32 %y0, %x0;",
        ),
        (
            "read before it is written",
            "mov.b16 %h1, 7; mov.b32 %r1, {%h2, %h1}; shr.u32 %y0, %r1, 15;",
        ),
        (
            "read before it is written",
            "mov.b16 %h1, 7; mov.b32 %r1, {%h2, %h1}; shr.u32 %y0, %r1, 16; mov.b32 %y0, %r1;",
        ),
        (
            "read before it is written",
            "mov.b16 %h1, 7; mov.b32 %r1, {%h1, %h2}; mov.b32 %r2, {%h1, %h1};"
            "add.rn.f16x2 %r3, %r1, %r2; mov.b32 {_, %h4}, %r3;",
        ),
        ("division by zero", "div.s32 %y0, 1, %x0;"),
        ("trap", "mov.b32 %y0, 0; setp.eq.s32 %p1, %x0, 3; @%p1 trap;"),
        ("members", "shfl.sync.bfly.b32 %y0, %x0, 1, 31, 15;"),
        ("members", "setp.lt.s32 %p1, %x0, 7; @%p1 shfl.sync.bfly.b32 %y0, %x0, 1, 31, -1;"),
        (
            "not take part",
            "setp.lt.s32 %p1, %index2, 4;@%p1 shfl.sync.down.b32 %y0, %x0, 1, 31, 15;",
        ),
        ("still running after 1000 instructions", "HERE: bra HERE;"),
    ],
)
def test_other_faults(kind, code):
    found = fault(kind, code + " mov.b32 %y0, 0;", steps=1000)
    assert found.place.kernel == "snippet"
    assert found.place.line


def test_a_part_that_nobody_wrote_may_be_dropped():
    """Guard against faults in compiled code, which packs unwritten registers and drops them."""
    low = "mov.b32 %r1, {%h1, %h2}; mov.b32 {%h3, _}, %r1; cvt.u32.u16 %y0, %h3;"
    high = "mov.b32 %r1, {%h2, %h1}; shr.u32 %y0, %r1, 16;"
    added = "mov.b32 %r1, {%h1, %h2}; mov.b32 %r4, 0; add.rn.f16x2 %r2, %r1, %r4;"
    x = np.zeros(256, np.uint32)
    for code in (low, high, added + "mov.b32 {%h3, _}, %r2; cvt.u32.u16 %y0, %h3;"):
        assert (apply("mov.b16 %h1, 7; " + code, x, out=x.dtype) == 7).all()


@triton.jit
def asserted(x_ptr, n, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.device_assert(x < n, "too large")
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.sum(x) + x)


def test_device_assertion():
    x = torch.arange(128, dtype=torch.int32)
    with ptxsim.install(90):
        asserted[(1,)](x.clone(), 128, BLOCK=128, debug=True)
        with pytest.raises(ptxsim.Fault, match="device assertion failed") as found:
            asserted[(1,)](x, 100, BLOCK=128, debug=True)
    assert found.value.place.thread == 100


def test_ranges_outside_tensors_can_be_declared():
    x = np.ones(128, np.float32)
    with ptxsim.install(90), pytest.raises(ptxsim.Fault, match="out of bounds"):
        double[(1,)](Pointer(x), 128, BLOCK=128)
    with ptxsim.install(90, ranges=[(x.ctypes.data, x.nbytes)]):
        double[(1,)](Pointer(x), 128, BLOCK=128)
    assert (x == 2).all()


class Pointer:
    """A pointer argument for Triton that is no tensor."""

    dtype = torch.float32

    def __init__(self, array):
        self.array = array

    def data_ptr(self):
        return self.array.ctypes.data
