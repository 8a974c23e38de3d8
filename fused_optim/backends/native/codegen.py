"""Code generation: from LLVM IR to machine code for a level of processors, by llvmlite."""

from functools import cache
from typing import Any, NamedTuple

from fused_optim.backends.native.elf import make_image
from fused_optim.backends.native.image import Image
from fused_optim.backends.native.lowering import Target
from fused_optim.backends.native.memory import Masking

NONE: frozenset[int] = frozenset()
WORDS = frozenset({4, 8})


class Level(NamedTuple):
    """A level of processors that code is compiled for, independent of the CPU of this machine.

    Attributes:
        triple: LLVM's target triple of the system.
        cpu: LLVM's name of the baseline processor of the level.
        target: properties of the processor that the IR depends on.
    """

    triple: str
    cpu: str
    target: Target


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
# without these attributes LLVM uses vectors of 256 bits
WIDE = '"prefer-vector-width"="512" "min-legal-vector-width"="512"'
LEVELS = {
    "x86-64-v2": Level(X86, "x86-64-v2", Target(Masking(NONE, NONE), has_half=False)),
    "x86-64-v3": Level(X86, "x86-64-v3", Target(Masking(WORDS, NONE), has_half=True)),
    "x86-64-v4": Level(
        X86, "x86-64-v4", Target(Masking(WORDS | {1, 2}, WORDS), has_half=True, attributes=WIDE)
    ),
    "aarch64": Level(ARM, "generic", Target(Masking(NONE, NONE), has_half=True)),
}


def make_code(ir: str, name: str, level: str) -> Image:
    """Compile the LLVM IR of the function ``name`` with optimizations.

    Raises:
        NotIndependent: the code refers to a symbol outside of itself.
    """
    machine, module = _optimized(ir, level)
    return make_image(machine.emit_object(module), name)


def make_assembly(ir: str, level: str) -> str:
    """Return the code of :func:`make_code` as assembly text."""
    machine, module = _optimized(ir, level)
    return str(machine.emit_assembly(module))


def _optimized(ir: str, level: str) -> tuple[Any, Any]:
    import llvmlite.binding as llvm

    machine = _machine(level)
    module = llvm.parse_assembly(ir)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    # the elements of a block are vectors already: loops are over blocks
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine, module


@cache
def _machine(level: str) -> Any:
    """Return LLVM's code generator for a level."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    chosen = LEVELS[level]
    return llvm.Target.from_triple(chosen.triple).create_target_machine(
        cpu=chosen.cpu, opt=3, reloc="pic", codemodel="small"
    )
