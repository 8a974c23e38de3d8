"""The choice of a backend, and the reasons why one is unavailable."""

import importlib.util
import logging
import os
import sys

import torch

from fused_optim import private_api
from fused_optim.backends.base import BucketKey, BucketRunner
from fused_optim.backends.kernel_runner import Executor, KernelRunner
from fused_optim.backends.matrix_runner import MatrixRunner

log = logging.getLogger("fused_optim")


def triton_unavailable_reason(device: torch.device) -> str | None:
    """Return the reason why Triton cannot run on ``device``, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu" and not _triton_may_run_on_cpu():
        return "triton has no driver for the CPU"
    if private_api.triton_is_interpreted():
        return None if device.type == "cpu" else f"the interpreter is on; {device} is not the CPU"
    try:
        runs_on = private_api.triton_device()
    except RuntimeError as error:
        return f"triton finds no device: {error}"
    # a driver of Triton may have the CPU as its device
    if runs_on.type != device.type:
        return f"triton runs on {runs_on.type} here and the parameters are on {device}"
    return None


def _triton_may_run_on_cpu() -> bool:
    """Return True if Triton is imported or its interpreter set; importing it takes 0.2 s."""
    return "triton" in sys.modules or "TRITON_INTERPRET" in os.environ


def native_unavailable_reason(device: torch.device) -> str | None:
    """Return the reason why kernels cannot be compiled for the CPU, or None if they can."""
    if device.type != "cpu":
        return f"it is for the CPU and the parameters are on {device}"
    for package in ("triton", "llvmlite"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install fused-optim[cpu]"
    from fused_optim.backends.native import levels

    try:
        levels.level()
    except levels.NoNativeCode as error:
        return str(error)
    return None


def resolve(name: str, device: torch.device, has_data: bool = True) -> str:
    """Return the backend to use on ``device``, for tensors with or without data.

    ``"auto"`` is Triton where it runs; else, on the CPU, ``"native"`` where kernels can be
    compiled for it; else the reference.

    Raises:
        RuntimeError: ``name`` is ``"triton"`` or ``"native"``, which is unavailable on ``device``.
    """
    if name == "reference":
        return name
    # without data there is no memory for a kernel to write
    kind = "meta" if device.type == "meta" else "fake"
    no_data = None if has_data else f"{kind} tensors have no data"
    if name == "native":
        return _required(name, no_data or native_unavailable_reason(device))
    reason = no_data or triton_unavailable_reason(device)
    if name == "triton" or reason is None:
        return _required("triton", reason)
    if device.type != "cpu" or not has_data:
        return "reference"
    reason = native_unavailable_reason(device)
    chosen = "native" if reason is None else "reference"
    because = "" if reason is None else f": {reason}"
    log.info("backend='auto' is %r on the CPU%s", chosen, because)
    return chosen


def _required(name: str, reason: str | None) -> str:
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot be used: {reason}")
    return name


def make_runner(key: BucketKey) -> BucketRunner:
    """Return the runner of one bucket."""
    if key.rule.matrix_step is not None:
        return MatrixRunner(key, make_runner)
    if key.backend == "reference":
        from fused_optim.backends import reference

        return reference.ReferenceRunner(key)
    return KernelRunner(key, _make_executor(key))


def _make_executor(key: BucketKey) -> Executor:
    if key.backend == "native":
        from fused_optim.backends.native import executor

        return executor.NativeExecutor(key)
    from fused_optim.backends import triton

    return triton.TritonExecutor(key)
