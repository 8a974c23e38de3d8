"""A stand-in for the GPU: runs the PTX that Triton compiles, on CPU tensors.

``install`` makes it Triton's driver. From then on ``kernel[grid](tensor, ...)`` goes the whole way
of a launch on a GPU (specialisation, cache, compilation for sm_<arch>), and the PTX that comes out
is executed here, thread by thread, in numpy::

    with ptxsim.install(arch=90) as driver:
        kernel[(4,)](x, y, n, BLOCK=1024)  # x and y: CPU tensors, changed in place
    print(driver.launches)  # [("kernel", (4, 1, 1))]

The results are those of the GPU, bit for bit. What is an error on a GPU, or left to chance there,
raises Fault with the kernel, the line of PTX, the block, the thread and the address:

- an access outside the storages of the live CPU tensors, or not aligned to its full width;
- a read of memory that nothing wrote (shared memory; ranges declared so in Memory);
- a race in shared memory: an access to what another thread wrote, or a write to what it read, with
  no barrier between them;
- a barrier that some threads of a block do not reach, a shuffle with threads that do not take part;
- two threads that write one address in one launch, or a block that reads what another one writes;
- a failed device assertion, a trap, a division by zero, a loop that does not end.

The order of the blocks can be permuted, and single blocks of a launch can be run: see Options.

Limits:

- It runs PTX, not the machine code that ptxas makes of it.
- The instructions that PTX defines only approximately give the exact result, rounded; those of a
  kernel are listed in ``PtxDriver.inexact``, with the sums and products that ptxas may contract.
- There are no tensor cores, no TMA, no clusters, no local or constant memory and no printf. An
  unknown instruction, type or modifier raises Unsupported: nothing is guessed.
- A block that waits for another one does not progress, and is taken to hang.
- Races in global memory are found between blocks; within one, only of writes with writes.
  Atomic operations are not among them.
- Memory is bounded by the storages of plain tensors and parameters: a view can be left unnoticed,
  its storage cannot. Other memory must be declared (the option ``ranges``).
- NaNs of float32, float16 and bf16 have the bits that a GPU gives them; those of float64 have the
  bits that the CPU gives them.
- All of a block's threads must have ended, or none, when it meets a barrier.
"""

from .driver import Launched, PtxDriver, install
from .errors import Fault, Place, Unsupported
from .machine import Options, run
from .memory import Memory

__all__ = [
    "Fault",
    "Launched",
    "Memory",
    "Options",
    "Place",
    "PtxDriver",
    "Unsupported",
    "install",
    "run",
]
