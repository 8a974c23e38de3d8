"""A PTX interpreter: runs the PTX that Triton compiles for NVIDIA GPUs, on CPU tensors.

``install`` makes it Triton's active driver. A launch then takes the path of a launch on a GPU
(specialization, cache, compilation for sm_<arch>), and the PTX is executed thread by thread::

    with ptxsim.install(arch=90) as driver:
        kernel[(4,)](x, y, n, BLOCK=1024)  # x and y: CPU tensors, changed in place
    print(driver.launches)  # [("kernel", (4, 1, 1))]

The results are those of the GPU, bit for bit. An error or undefined behaviour of a GPU raises
:class:`Fault`, an instruction that is not implemented :class:`Unsupported`. README.md lists the
faults that are found and the limits.
"""

from .driver import Launched, PtxDriver, install
from .errors import Fault, Place, Unsupported
from .machine import run
from .memory import Memory
from .state import Options

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
