"""Machine code in memory: not writable and executable at once, freed, and refused with a reason.

Faults tried by hand: memory that stays writable; memory that is not given back; the error of
mprotect ignored.
"""

import ctypes
import gc
import multiprocessing
from pathlib import Path

import pytest
from native.kernels import by_hand, module, run

from fused_optim.backends.native.image import PAGE, Image, Kernel
from fused_optim.backends.native.levels import level

STORE = """
    %seven = arith.constant 7 : i32
    tt.store %out, %seven : !tt.ptr<i32>"""


def mapping(address):
    """Return the permissions of the memory at an address; "" if nothing is mapped there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split()[:2]
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return permissions
    return ""


def test_the_memory_is_read_and_executed_alone():
    kernel = by_hand(module(STORE, "%out: !tt.ptr<i32>"), level())
    assert mapping(kernel.address) == "r-xp"
    result = ctypes.c_int32(0)
    run(kernel, ctypes.addressof(result))
    assert result.value == 7


def test_the_memory_is_given_back():
    """Guard against a leaked mapping, with an image that malloc would not cache."""
    kernel = Kernel(Image(bytes(64 << 20), 0))
    address = kernel.address
    assert mapping(address) == "r-xp"
    assert address % PAGE == 0
    del kernel
    gc.collect()
    assert mapping(address + (32 << 20)) == ""


def test_an_image_is_packed_and_unpacked():
    image = Image(b"\x90" * 100, 48)
    assert Image.unpack(image.pack()) == image


def map_without_permission(connection):
    """Forbid what systemd's MemoryDenyWriteExecute forbids, and map an image."""
    libc = ctypes.CDLL(None, use_errno=True)
    # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    if libc.prctl(65, 1, 0, 0, 0) != 0:
        connection.send("cannot be forbidden")
        return
    try:
        Kernel(Image(b"\xc3", 0))
    except RuntimeError as error:
        connection.send(str(error))
    else:
        connection.send("mapped")


# torch has threads, none of which matters to the child
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_system_that_forbids_it_is_named():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=map_without_permission, args=(theirs,))
    child.start()
    assert ours.poll(60)
    said = ours.recv()
    child.join()
    if said == "cannot be forbidden":
        pytest.skip("prctl(PR_SET_MDWE) fails: it needs Linux 6.3")
    assert "backend='native' needs memory that can be executed" in said
    assert "Permission denied" in said or "not permitted" in said
