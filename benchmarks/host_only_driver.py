"""A Triton driver and stubs of torch's kernels that do nothing, to time the host alone."""

from functools import cache
from types import TracebackType
from typing import Any

import torch
import triton

from ci.ptxsim.driver import PtxDriver


class NoLauncher:
    """Launcher whose launches do nothing."""

    def __init__(self, source: Any, metadata: Any) -> None:
        """Accept the arguments that Triton passes for each kernel."""

    def __call__(self, *arguments: Any) -> None:
        """Accept a launch and do nothing."""


class HostOnlyDriver(PtxDriver):
    """Driver that compiles for a GPU, accepts CPU tensors and runs nothing."""

    launcher_cls = NoLauncher


@cache
def host_only_driver() -> HostOnlyDriver:
    """Return the only instance; launches look up compiled kernels by driver."""
    return HostOnlyDriver(90)


def use_host_only_driver() -> None:
    """Make the driver that launches nothing the active one."""
    triton.runtime.driver.set_active(host_only_driver())


# in which attribute Triton keeps its driver, and what it means by None, differs by version
_BEFORE = dict(vars(triton.runtime.driver))


def use_real_driver() -> None:
    """Restore the driver that Triton had before."""
    vars(triton.runtime.driver).update(_BEFORE)


class NoKernels:
    """Context manager that disables the kernels of torch's fused AdamW and ``clip_grad_norm_``.

    Args:
        gradients: tensors that ``clip_grad_norm_`` gets; their norms are computed once.
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
