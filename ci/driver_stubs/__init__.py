"""Stubs of the GPU vendors' driver libraries, for Triton's own drivers and launchers.

``ci.ptxsim`` replaces the whole of Triton's driver. Here everything of Triton runs as on a GPU: its
driver class, the C code that loads a binary, and the C code that converts and packs the Python
arguments of a launch. Only the library that it calls is replaced, by a small libcuda.so.1 or
libamdhip64.so, compiled from ``cuda.c`` or ``hip.c`` against the headers in Triton's wheel. CPU
tensors are device memory::

    from ci import driver_stubs

    with driver_stubs.cuda() as driver:
        kernel[(4,)](x, y, n, BLOCK=1024)  # x and y: CPU tensors, changed in place
    print(driver.launches[0].parameters)  # the bytes that Triton's C code packed

- ``cuda()``: two devices of sm_90. A launch runs the PTX of the kernel that was loaded, in
  ``ci.ptxsim``, with the parameters that arrived; their widths are those of the PTX entry.
- ``hip()``: two devices of gfx942. AMD's machine code cannot be executed here, so a launch is only
  recorded: tests see the packed arguments, but not their effect. The widths and the layout are
  those of the code object's metadata.

A launch must have the block, the shared memory and the device that its kernel was compiled and
loaded for, and the stream that is current on that device; else Triton reports a failed launch with
the reason, as it does for an error of the real library. Within ``pretended(driver)`` CPU tensors
may report one of the driver's devices.

Limits: nothing is asynchronous, and a process with the real library cannot load the stub.
"""

from .cuda import CudaStub, cuda
from .devices import Pretended, pretended
from .driver import BadLaunch, Launch
from .hip import HipStub, hip
from .library import c_compiler

__all__ = [
    "BadLaunch",
    "CudaStub",
    "HipStub",
    "Launch",
    "Pretended",
    "c_compiler",
    "cuda",
    "hip",
    "pretended",
]
