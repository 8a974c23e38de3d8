"""Private names of torch and Triton, each with a fallback for releases that lack it.

torch and Triton may rename any of them in any release. No other module of the library uses a
private name: ``tests/test_private_api.py`` checks this, and runs without each of these names. The
attributes ``_step_supports_amp_scaling``, ``grad_scale`` and ``found_inf`` of an optimizer, through
which ``torch.amp.GradScaler`` leaves unscaling to the step, are not public either; a scaler that
does not read them unscales itself.
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


# torch.compile's guard of many tensors in one call: 50 ns for each, where reading the attributes of
# a tensor in Python takes a microsecond; where it is None, the caller reads the attributes
TENSOR_GUARDS: Any = find("torch._C._dynamo.guards", "TensorGuards")


def _disable_lazily(function: F) -> F:
    """Disable torch.compile for ``function``; torch._dynamo is imported only by the first call."""
    disable: Any = torch.compiler.disable
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            disabled = disable(function)
        return disabled(*args, **kwargs)

    return cast(F, call)


# the decorator of torch's own optimizers; torch.compiler.disable would import torch._dynamo, which
# takes seconds, when the class is defined
disable_dynamo: Callable[[F], F] = find("torch._compile", "_disable_dynamo") or _disable_lazily


def dlpack_exchange_api() -> Any:
    """Return DLPack's capsule of C functions that read tensors without the headers of torch.

    Raises:
        ValueError: this release of torch lacks it.
    """
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    # other packages add a capsule to older releases of torch
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


# returns True for an instance of a subclass that wraps other tensors and has no memory itself
is_wrapper: Callable[[Any], bool] = (
    find("torch.utils._python_dispatch", "is_traceable_wrapper_subclass") or _has_inner_tensors
)


# the class of tensors that FakeTensorMode makes: on a real device, but without memory
FAKE_TENSOR: Any = find("torch._subclasses.fake_tensor", "FakeTensor")


def has_data(tensor: Tensor) -> bool:
    """Return whether a tensor has values: neither on the meta device nor of FakeTensorMode."""
    is_fake = FAKE_TENSOR is not None and isinstance(tensor, FAKE_TENSOR)
    return not (is_fake or tensor.is_meta)


def local_tensor(dtensor: Any) -> Tensor:
    """Return the local tensor of a DTensor, without waiting for collectives.

    ``to_local()`` is public, but takes microseconds, and makes a new view of a parameter.
    """
    try:
        local: Tensor = dtensor._local_tensor
    except AttributeError:
        with torch.no_grad():
            local = dtensor.to_local()
    return local


def is_fsdp1_flat(param: Tensor) -> bool:
    """Return True for a parameter that FSDP1 has flattened and sharded, which is a plain tensor."""
    return bool(getattr(param, "_fsdp_flattened", False))


def locate_shard(
    shape: torch.Size, mesh: Any, placements: Sequence[Any]
) -> tuple[Sequence[int], Sequence[int]]:
    """Return shape and global offset, for each dim, of this rank's shard of a DTensor.

    Args:
        shape: shape of the whole tensor.
        mesh: device mesh.
        placements: placement in each dim of the mesh.

    Raises:
        RuntimeError: this release of torch lacks the function.
    """
    # found when it is called: the import takes a second
    locate = find("torch.distributed.tensor._utils", "compute_local_shape_and_global_offset")
    if locate is None:
        raise RuntimeError(
            f"torch {torch.__version__} does not tell the offset of a shard, which stochastic "
            "rounding of a DTensor needs: use another release, or formats without it"
        )
    located: tuple[Sequence[int], Sequence[int]] = locate(shape, mesh, placements)
    return located


def triton_is_interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter, on the CPU."""
    runtime: Any = getattr(find("triton", "knobs"), "runtime", None)
    if hasattr(runtime, "interpret"):
        return bool(runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def triton_ir() -> Any:
    """Return Triton's module that builds IR, which the native backend needs.

    Raises:
        RuntimeError: this release of Triton does not have the module.
    """
    ir = find("triton._C.libtriton", "ir")
    if ir is None:
        raise RuntimeError(
            "this release of triton has no triton._C.libtriton.ir, which backend='native' needs: "
            "use another release, or backend='reference'"
        )
    return ir


def triton_device() -> torch.device:
    """Return the device that Triton launches on.

    Raises:
        RuntimeError: there is no such device.
    """
    driver = find("triton.runtime", "driver")
    active_device = getattr(getattr(driver, "active", None), "get_active_torch_device", None)
    device = (active_device or _accelerator)()
    if device is None:
        raise RuntimeError("torch has no accelerator")
    return cast(torch.device, device)


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator(check_available=True)
