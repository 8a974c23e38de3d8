"""The compilation of a Triton kernel to machine code, with a cache in memory and on disk."""

import os
import threading
from collections.abc import Callable
from typing import Any

from fused_optim.backends.native import cache
from fused_optim.backends.native.image import Image, Kernel

# jit function, types of its arguments, and its constants: see frontend.make_ttir
Source = tuple[Any, dict[str, str], dict[str, Any]]


class _Made:
    """The kernels of this process; after a fork the child has them too, with a new lock."""

    def __init__(self) -> None:
        self.kernels: dict[str, Kernel] = {}
        self.renew()

    def renew(self) -> None:
        """Create a new lock, for the child of a fork: another thread may have held the old one."""
        self.lock = threading.RLock()


MADE = _Made()
os.register_at_fork(after_in_child=MADE.renew)


def compile_kernel(
    name: str, describe: str, make_source: Callable[[], Source], level: str
) -> Kernel:
    """Return the machine code of a kernel.

    Args:
        name: name of the kernel.
        describe: text that identifies the constants and types of the kernel.
        make_source: function that returns the source; called only if the code is not cached.
        level: level of processors, a key of ``codegen.LEVELS``.

    Raises:
        ImportError: triton or llvmlite is not installed.
        UnsupportedTTIR: the TTIR of the installed triton has an unknown operation.
        NotIndependent: the code would call a library.
        RuntimeError: Triton's interpreter is on, or the system forbids executable memory.
    """
    key = cache.key(name, describe, level)
    with MADE.lock:
        kernel = MADE.kernels.get(key)
        if kernel is None:
            code = cache.load(key)
            if code is None:
                code = compile_image(make_source(), level).pack()
                cache.store(key, code)
            kernel = MADE.kernels[key] = Kernel(Image.unpack(code))
        return kernel


def compile_image(source: Source, level: str) -> Image:
    """Compile a kernel without the cache; see :func:`compile_kernel` for the errors."""
    # imported here: a process whose code is on disk needs none of these
    from fused_optim.backends.native.codegen import LEVELS, make_code
    from fused_optim.backends.native.frontend import make_ttir, writer
    from fused_optim.backends.native.lowering import lower
    from fused_optim.backends.native.ttir import parse

    function = parse(make_ttir(*source), writer())
    return make_code(lower(function, LEVELS[level].target), function.name, level)
