"""Names of torch and Triton that are not public, each with what stands in where it is missing.

torch and Triton may rename any of them in any release. No other module of the library uses one:
``tests/test_private_api.py`` finds those that do, and takes each name of this module away. The
attributes ``_step_supports_amp_scaling``, ``grad_scale`` and ``found_inf`` of an optimizer, through
which ``torch.amp.GradScaler`` leaves unscaling to the step, are not public either; a scaler that
does not know them unscales by itself.
"""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def find(module: str, name: str) -> Any:
    """Return the attribute ``name`` of ``module``; None if this release lacks either."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


# torch.compile's own check of many tensors in one call: 50 ns each, where reading the attributes of
# one tensor in Python takes a microsecond. None: the caller reads the attributes.
TENSOR_GUARDS: Any = find("torch._C._dynamo.guards", "TensorGuards")


def _disable_lazily(function: F) -> F:
    """Keep torch.compile out of ``function``; torch._dynamo is imported by the first call only."""
    disable: Any = torch.compiler.disable
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            disabled = disable(function)
        return disabled(*args, **kwargs)

    return call  # type: ignore[return-value]


# the decorator of torch's own optimizers; torch.compiler.disable would import torch._dynamo, which
# takes seconds, when the class is defined
disable_dynamo: Callable[[F], F] = find("torch._compile", "_disable_dynamo") or _disable_lazily


def dlpack_exchange_api() -> Any:
    """Return the capsule of function pointers by which C reads tensors without torch's headers.

    DLPack defines the name and what is behind it.

    Raises:
        ValueError: this release of torch lacks it.
    """
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    # to older releases other packages add one of their own
    if capsule is None or torch.__version__ < "2.10":
        raise ValueError(f"torch {torch.__version__} has no exchange API of DLPack")
    return capsule


def _copy_each(destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for destination, source in zip(destinations, sources, strict=True):
        destination.copy_(source)


# one call for many small copies
copy_all: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = (
    find("torch", "_foreach_copy_") or _copy_each
)


def _has_inner_tensors(tensor: Any) -> bool:
    return hasattr(tensor, "__tensor_flatten__") and hasattr(tensor, "__tensor_unflatten__")


# whether a tensor is of a subclass that wraps other tensors and has no memory of its own
is_wrapper: Callable[[Any], bool] = (
    find("torch.utils._python_dispatch", "is_traceable_wrapper_subclass") or _has_inner_tensors
)


# the class of tensors that FakeTensorMode makes: on a real device, but without memory
FAKE_TENSOR: Any = find("torch._subclasses.fake_tensor", "FakeTensor")


def has_data(tensor: Tensor) -> bool:
    """Return whether a tensor has values: neither on the meta device nor of FakeTensorMode."""
    is_fake = FAKE_TENSOR is not None and isinstance(tensor, FAKE_TENSOR)
    return not (is_fake or tensor.is_meta)


def triton_is_interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter, on the CPU."""
    runtime: Any = getattr(find("triton", "knobs"), "runtime", None)
    if hasattr(runtime, "interpret"):
        return bool(runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def triton_ir() -> Any:
    """Return Triton's module that makes IR, without which the native backend is refused.

    Raises:
        RuntimeError: this release of Triton does not have it where it was.
    """
    ir = find("triton._C.libtriton", "ir")
    if ir is None:
        raise RuntimeError("this triton has no triton._C.libtriton.ir, by which kernels are read")
    return ir


def triton_device() -> torch.device:
    """Return the device that Triton launches on.

    Raises:
        RuntimeError: Triton finds none.
    """
    driver = find("triton.runtime", "driver")
    active_device = getattr(getattr(driver, "active", None), "get_active_torch_device", None)
    found = (active_device or _accelerator)()
    if found is None:
        raise RuntimeError("torch has no accelerator")
    return cast(torch.device, found)


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator(check_available=True)
