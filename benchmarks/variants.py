"""Optimizers in storage formats on backends: one table each, and what is there, found by trying."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn import Parameter

import fused_optim
from benchmarks.rivals import RIVALS, Rival
from benchmarks.shapes import Shape
from fused_optim.optimizers.base import FusedOptimizer

LR = 1e-5
MAX_GRAD_NORM = 1.0
Groups = list[dict[str, Any]]
Step = Callable[[], object]


@dataclass(frozen=True)
class Format:
    """A storage format.

    Attributes:
        dtype: of parameters and gradients.
        options: what our optimizers take for it.
    """

    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)


# the options of both libraries
SHARED: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adam": {},
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
    "RMSprop": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
}
# and those that torch does not have
OPTIMIZERS = {
    name: SHARED.get(name, {})
    for name in [*SHARED, *fused_optim.__all__]
    if isinstance(getattr(fused_optim, name), type)
    and issubclass(getattr(fused_optim, name), torch.optim.Optimizer)
}
FORMATS = {
    "fp32": Format(torch.float32),
    "bf16": Format(torch.bfloat16, {"states": "bf16"}),
    "bf16-fp32": Format(torch.bfloat16, {"states": "fp32"}),
    "master": Format(torch.bfloat16, {"weights": "master", "states": "fp32"}),
    "split": Format(torch.bfloat16, {"weights": "split", "states": "fp32"}),
    "split-bf16": Format(torch.bfloat16, {"weights": "split", "states": "bf16"}),
    "kahan": Format(torch.bfloat16, {"weights": "kahan", "states": "bf16"}),
    "stochastic": Format(torch.bfloat16, {"weights": "stochastic", "states": "bf16"}),
    "bf16-int8": Format(torch.bfloat16, {"states": "int8"}),
    "split-int8": Format(torch.bfloat16, {"weights": "split", "states": "int8"}),
    "split-fp8": Format(torch.bfloat16, {"weights": "split", "states": "fp8"}),
    "split24-int8": Format(torch.bfloat16, {"weights": "split24", "states": "int8"}),
}
# our backends, and where they are for speed
BACKENDS = {"triton": ("cuda", "xpu"), "compiled": ("cpu",), "reference": ("cpu",)}
TORCH = {
    "torch for-loop": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}
# of all formats torch has these; beside the others stands its fastest step, in the same weights
TORCH_FORMATS = ("fp32", "bf16")
# what says that a library does not do something, or cannot here; a broken installation may raise
# anything at all when it is imported
REFUSALS = (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError)
TRIAL: list[list[Shape]] = [[(33, 7), (5,)]]


def parameters(groups: Sequence[Sequence[Shape]], format: str, device: str) -> Groups:
    """Parameter groups with gradients of ordinary values."""
    dtype = FORMATS[format].dtype
    block = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def filled(shape: Shape) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        flat, whole = tensor.view(-1), tensor.numel() // len(block) * len(block)
        # a random number for each element would take longer than the benchmark
        flat[:whole].view(-1, len(block)).copy_(block.expand(whole // len(block), -1))
        flat[whole:].copy_(block[: tensor.numel() - whole])
        return tensor

    made = [[Parameter(filled(shape)) for shape in group] for group in groups]
    for param in (param for group in made for param in group):
        param.grad = param.detach() * 1e-2
    return [{"params": group} for group in made]


def copied(groups: Groups) -> Groups:
    """Parameters of its own for another variant, with the same gradients."""
    copies = [[Parameter(p.detach().clone()) for p in group["params"]] for group in groups]
    for group, originals in zip(copies, groups, strict=True):
        for param, original in zip(group, originals["params"], strict=True):
            param.grad = original.grad
    return [{"params": group} for group in copies]


def ours(optimizer: str, format: str, backend: str, clip: bool, groups: Groups) -> FusedOptimizer:
    """One of ours."""
    options = {**OPTIMIZERS[optimizer], **FORMATS[format].options, "lr": LR, "backend": backend}
    if clip:
        options["max_grad_norm"] = MAX_GRAD_NORM
    made: FusedOptimizer = getattr(fused_optim, optimizer)(groups, **options)
    return made


@cache
def why_not_ours(optimizer: str, format: str, backend: str, device: str) -> str | None:
    """The reason why a backend cannot be had, found by trying."""
    return reason(lambda: ours(optimizer, format, backend, False, trial(format, device)).step())


@cache
def why_not_torch(optimizer: str, kind: str, format: str, device: str) -> str | None:
    """The reason why torch has no such optimizer, found by trying."""
    return reason(lambda: theirs(optimizer, TORCH[kind], trial(format, device)).step())


@cache
def why_not_rival(index: int, device: str) -> str | None:
    """The reason why a rival is not there, found by trying."""
    rival = RIVALS[index]
    if device not in rival.devices:
        return f"not for {device}"
    try:
        importlib.import_module(rival.target.split(".")[0].split(":")[0])
    except ImportError:
        return "not installed"
    return reason(lambda: loaded(rival, trial(rival.format, device)).step())


def trial(format: str, device: str) -> Groups:
    """A few small parameters."""
    return parameters(TRIAL, format, device)


def reason(attempt: Step) -> str | None:
    """What speaks against ``attempt``; None if it succeeds."""
    try:
        attempt()
    except REFUSALS as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """The part of a message that fits on a line."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def theirs(optimizer: str, kind: dict[str, Any], groups: Groups) -> torch.optim.Optimizer:
    """One of torch's."""
    options = {**OPTIMIZERS[optimizer], **kind, "lr": LR}
    made: torch.optim.Optimizer = getattr(torch.optim, optimizer)(groups, **options)
    return made


def loaded(rival: Rival, groups: Groups) -> torch.optim.Optimizer:
    """One of another library."""
    return rival.load()(groups, lr=LR, **rival.options)  # type: ignore[call-arg]


def clipped(optimizer: torch.optim.Optimizer, clip: bool, foreach: bool) -> Step:
    """A step after ``clip_grad_norm_``, as one writes it with optimizers that do not clip."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM, foreach=foreach)
        optimizer.step()

    return step
