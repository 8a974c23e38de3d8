"""The translation of a jit function to TTIR by Triton's front end, on a machine without a GPU.

TTIR is Triton's IR before layouts and threads, independent of the GPU. Only this module of the
backend imports triton.
"""

import inspect
from typing import Any

from fused_optim import private_api

# TTIR does not depend on the target: see make_ttir in Triton's backend
TARGET = ("cuda", 90, 32)
# every operation rounds once
OPTIONS = {"enable_fp_fusion": False}


def make_ttir(function: Any, signature: dict[str, str], constants: dict[str, Any]) -> str:
    """Return the TTIR of a kernel, as text.

    Args:
        function: jit function of the kernel.
        signature: type of each argument by name, such as ``"*fp64"`` or ``"i32"``; arguments in
            ``constants`` may be missing.
        constants: values of constexpr arguments by name, and None for arguments that are None.

    Raises:
        RuntimeError: Triton's interpreter is on, which has no compiler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    if not isinstance(function, triton.JITFunction):
        raise RuntimeError(
            f"{function.__name__} is no jit function: Triton's interpreter is on "
            "(TRITON_INTERPRET), and backend='native' needs its compiler"
        )
    backend = make_backend(GPUTarget(*TARGET))
    options = backend.parse_options(dict(OPTIONS))
    signature = signature | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    module = _make_module(source, backend, options, private_api.triton_ir())
    text: str = stages["ttir"](module, {}).str_nodebug()
    return text


def writer() -> str:
    """Return the name and version of the installed Triton, for messages."""
    import triton

    return f"triton {triton.__version__}"


def _make_module(source: Any, backend: Any, options: Any, ir: Any) -> Any:
    """Build the module before any pass, as ``triton.compile`` does."""
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    given = {
        "target": backend.target,  # since 3.5
        "options": options,
        "codegen_fns": backend.get_codegen_implementation(options),
        "module_map": backend.get_module_map(),
        "context": context,
    }
    taken = inspect.signature(source.make_ir).parameters
    return source.make_ir(**{name: given[name] for name in taken})
