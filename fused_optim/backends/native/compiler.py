"""From a kernel of Triton's to machine code: from memory, from disk, or by compiling it now."""

import os
import threading
from collections.abc import Callable
from typing import Any

from fused_optim.backends.native import cache
from fused_optim.backends.native.image import Image, Kernel

# the jit function, the types of its arguments, and its constants: see frontend.make_ttir
Source = tuple[Any, dict[str, str], dict[str, Any]]


class _Made:
    """The kernels of this process. After a fork the child has them too, and a lock of its own."""

    def __init__(self) -> None:
        self.kernels: dict[str, Kernel] = {}
        self.renew()

    def renew(self) -> None:
        """Take a new lock, which nothing holds."""
        self.lock = threading.RLock()


MADE = _Made()
os.register_at_fork(after_in_child=MADE.renew)


def compile_kernel(
    name: str, describe: str, make_source: Callable[[], Source], level: str
) -> Kernel:
    """Return the machine code of a kernel.

    Args:
        name: of the kernel.
        describe: the constants and types it is compiled for; whatever differs must differ here.
        make_source: gives the kernel to Triton; called only if it is in neither memory nor disk.
        level: of processors, one of ``codegen.LEVELS``.

    Raises:
        ImportError: triton or llvmlite is not installed.
        UnsupportedTTIR: this triton writes what the backend does not know.
        NotIndependent: the code would call a library.
        RuntimeError: Triton's interpreter is on, or memory may not be executed.
    """
    key = cache.key(name, describe, level)
    with MADE.lock:
        found = MADE.kernels.get(key)
        if found is None:
            code = cache.load(key)
            if code is None:
                code = compile_image(make_source(), level).pack()
                cache.store(key, code)
            found = MADE.kernels[key] = Kernel(Image.unpack(code))
        return found


def compile_image(source: Source, level: str) -> Image:
    """Compile a kernel now; raises what :func:`compile_kernel` does."""
    # a start that finds its code on disk imports none of this
    from fused_optim.backends.native.codegen import LEVELS, make_code
    from fused_optim.backends.native.frontend import make_ttir, writer
    from fused_optim.backends.native.lowering import lower
    from fused_optim.backends.native.ttir import parse

    function = parse(make_ttir(*source), writer())
    return make_code(lower(function, LEVELS[level].target), function.name, level)
