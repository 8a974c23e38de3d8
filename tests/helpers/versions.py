"""Conditions on versions of packages and on the processor, each with its reason.

A test that cannot pass is marked by :func:`refused`, which is strict: where the condition holds the
test must fail, so that a reason that no longer holds is found out. Where a package can be asked
what it does, the condition asks it; a number of a version is for what cannot be asked.
"""

from importlib import metadata

import pytest
import torch
from packaging.version import Version
from torch.optim import lr_scheduler

from ci.codegen.linker import has_amd_linker


def installed(package: str) -> tuple[int, ...]:
    """Return the installed release of a package, such as (3, 7, 1) for 3.7.1."""
    return Version(metadata.version(package)).release


def refused(condition: bool, reason: str) -> pytest.MarkDecorator:
    """Mark a test that fails where ``condition`` holds, and only there."""
    return pytest.mark.xfail(condition, reason=reason, strict=True)


# ---- Triton

TRITON = installed("triton")


NO_AMD_LINKER = not has_amd_linker()
NEEDS_AMD_LINKER = refused(
    NO_AMD_LINKER, "Triton before 3.5 links for AMD with ROCm's ld.lld, which is not here"
)
# from 3.6 on the wheel has an assembler for Blackwell too, and IEEE division and root
# are compiled to instructions of their own instead of NVIDIA's library with denormals off
OLD_PTXAS = OLD_LIBDEVICE = TRITON < (3, 6)
NEEDS_DENORMALS = refused(
    OLD_LIBDEVICE, "for NVIDIA, Triton before 3.6 divides and takes roots with denormals as zero"
)


# ---- torch

NEEDS_TORCH_MUON = refused(
    not hasattr(torch.optim, "Muon"), f"there is no torch.optim.Muon in torch {torch.__version__}"
)
NEEDS_GRAD_DTYPE = refused(
    not hasattr(torch.Tensor, "grad_dtype"),
    f"gradients have the dtype of the parameter in torch {torch.__version__}",
)
NEEDS_KEPT_TENSOR_LR = refused(
    not hasattr(lr_scheduler, "_update_param_group_val"),
    f"this scheduler of torch {torch.__version__} does not keep a Tensor lr, but replaces it",
)
# the profiler of 2.11 warns at every use
PROFILER_WARNS = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
# a scheduler of 2.8 calls others in a way that these deprecate
SEQUENTIAL_LR_WARNS = pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")


def adagrad_is_lazy() -> bool:
    """Return whether a step of torch's Adagrad creates a state that is missing."""
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adagrad([param])
    optimizer.state.clear()
    param.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


NEEDS_LAZY_ADAGRAD = refused(
    not adagrad_is_lazy(),
    f"Adagrad of torch {torch.__version__} makes states when it is constructed alone",
)


# ---- the processor, as torch uses it

# RMSprop with centered: the variance of squares past the largest float32 is Inf - Inf, or finite
CENTERED_OVERFLOWS = refused(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    "torch's centered RMSprop gives NaN for gradients that overflow, where it has no vector code",
)
