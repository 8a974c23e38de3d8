"""Stand-ins that leave only a step's work on the host: launches and kernels do nothing."""

from functools import cache
from types import TracebackType
from typing import Any

import torch
import triton
from ptxsim.driver import PtxDriver


class NullLauncher:
    """A launcher whose launches do nothing."""

    def __init__(self, source: Any, metadata: Any) -> None:
        """Triton makes one for each kernel."""

    def __call__(self, *arguments: Any) -> None:
        """Triton calls it for each launch."""


class NullDriver(PtxDriver):
    """Compiles for a GPU and takes CPU tensors for its memory, like its base; runs nothing."""

    launcher_cls = NullLauncher


@cache
def null_driver() -> NullDriver:
    """Return the one driver, by which launches know the kernels that it has compiled."""
    return NullDriver(90)


def use_null_driver() -> None:
    """Let Triton launch nothing."""
    triton.runtime.driver.set_active(null_driver())


# in which attribute Triton keeps its driver, and what it means by None, differs by version
_BEFORE = dict(vars(triton.runtime.driver))


def use_real_driver() -> None:
    """Let Triton find the machine's GPU again."""
    vars(triton.runtime.driver).update(_BEFORE)


class NoKernels:
    """A context within which torch's fused AdamW and ``clip_grad_norm_`` run no kernels.

    Args:
        gradients: those to be clipped; their norms are computed here once.
    """

    def __init__(self, gradients: list[torch.Tensor]) -> None:
        norms = torch._foreach_norm(gradients)
        self.stubs = {
            "_foreach_norm": lambda *arguments, **options: norms,
            "_foreach_mul_": lambda *arguments, **options: None,
            "_foreach_add_": lambda *arguments, **options: None,
            "_fused_adamw_": lambda *arguments, **options: None,
        }
        self.kernels = {name: getattr(torch, name) for name in self.stubs}

    def __enter__(self) -> None:
        for name, stub in self.stubs.items():
            setattr(torch, name, stub)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, kernel in self.kernels.items():
            setattr(torch, name, kernel)
