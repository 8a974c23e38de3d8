"""Tables of optimizers, storage formats and backends, and which combinations work here."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn import Parameter

import fused_optim
from benchmarks.machine import free_memory
from benchmarks.shapes import MODELS, Shape
from benchmarks.third_party import THIRD_PARTY, Library
from fused_optim.optimizers.base import FusedOptimizer

LR = 1e-5
MAX_GRAD_NORM = 1.0
Groups = list[dict[str, Any]]
Step = Callable[[], object]


@dataclass(frozen=True)
class Format:
    """A storage format.

    Attributes:
        dtype: dtype of parameters and gradients.
        options: keyword arguments of our optimizers that select the format.
    """

    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)


# the optimizers that torch has too, with the options of both
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
# all optimizers of fused_optim that support dense gradients
OPTIMIZERS = {
    name: SHARED.get(name, {})
    for name in [*SHARED, *fused_optim.__all__]
    if isinstance(getattr(fused_optim, name), type)
    and issubclass(getattr(fused_optim, name), torch.optim.Optimizer)
    and name != "SparseAdam"
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
# our backends, and the devices where each is timed
BACKENDS = {"triton": ("cuda", "xpu"), "native": ("cpu",), "reference": ("cpu",)}
TORCH = {
    "torch for-loop": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}
# torch has these formats; the others are compared with its fused step in plain bf16
TORCH_FORMATS = ("fp32", "bf16")
# a library that lacks a feature, cannot run here or is badly installed raises one of these
REFUSALS = (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError)
TRIAL: list[list[Shape]] = [[(33, 7), (5,)]]


def tensors_of(model: str, format: str, candidates: int) -> tuple[list[Shape], str] | None:
    """Choose the largest number of layers that fits into memory.

    Args:
        model: key of :data:`benchmarks.shapes.MODELS`.
        format: key of :data:`FORMATS`.
        candidates: number of optimizers that hold parameters and states at the same time.

    Returns:
        the shapes, and a text with the number of layers if the model was cut, else ""; None if
        one layer does not fit.
    """
    width = FORMATS[format].dtype.itemsize
    # shared gradients; weights and two or three states of each; temporaries of one step
    each = 2 * width + candidates * (width + (8 if width == 4 else 12)) + 12
    layers = MODELS[model].fitting(0.8 * free_memory() / each)
    if layers is None:
        return None
    cut = "" if layers == MODELS[model].layers else f"{layers} of {MODELS[model].layers} layers"
    return MODELS[model].tensors(layers), cut


def parameters(groups: Sequence[Sequence[Shape]], format: str, device: str) -> Groups:
    """Return parameter groups with gradients of ordinary values."""
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
    """Return groups with copies of the parameters and with the same gradients."""
    copies = [[Parameter(p.detach().clone()) for p in group["params"]] for group in groups]
    for group, originals in zip(copies, groups, strict=True):
        for param, original in zip(group, originals["params"], strict=True):
            param.grad = original.grad
    return [{"params": group} for group in copies]


def ours(optimizer: str, format: str, backend: str, clip: bool, groups: Groups) -> FusedOptimizer:
    """Create our optimizer."""
    options = {**OPTIMIZERS[optimizer], **FORMATS[format].options, "lr": LR, "backend": backend}
    if clip:
        options["max_grad_norm"] = MAX_GRAD_NORM
    made: FusedOptimizer = getattr(fused_optim, optimizer)(groups, **options)
    return made


@cache
def why_not_ours(optimizer: str, format: str, backend: str, device: str) -> str | None:
    """Try a step of ours; return the reason why it cannot be taken, or None."""
    return reason(lambda: ours(optimizer, format, backend, False, trial(format, device)).step())


@cache
def why_not_torch(optimizer: str, kind: str, format: str, device: str) -> str | None:
    """Try a step of torch's; return the reason why it cannot be taken, or None."""
    return reason(lambda: theirs(optimizer, TORCH[kind], trial(format, device)).step())


@cache
def why_not_third_party(index: int, device: str) -> str | None:
    """Try a step of ``THIRD_PARTY[index]``; return the reason why it cannot be taken, or None."""
    library = THIRD_PARTY[index]
    if device not in library.devices:
        return f"not for {device}"
    try:
        importlib.import_module(library.target.split(".")[0].split(":")[0])
    except ImportError:
        return "not installed"
    return reason(lambda: third_party(library, trial(library.format, device)).step())


def trial(format: str, device: str) -> Groups:
    """Return a few small parameters."""
    return parameters(TRIAL, format, device)


def reason(attempt: Step) -> str | None:
    """Return the first line of the error that ``attempt`` raises; None if it succeeds."""
    try:
        attempt()
    except REFUSALS as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """Return the part of a message that fits on a line."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def theirs(optimizer: str, kind: dict[str, Any], groups: Groups) -> torch.optim.Optimizer:
    """Create torch's optimizer."""
    options = {**OPTIMIZERS[optimizer], **kind, "lr": LR}
    made: torch.optim.Optimizer = getattr(torch.optim, optimizer)(groups, **options)
    return made


def third_party(library: Library, groups: Groups) -> torch.optim.Optimizer:
    """Create an optimizer of another library."""
    return library.load()(groups, lr=LR, **library.options)


def clipped(optimizer: torch.optim.Optimizer, clip: bool, foreach: bool) -> Step:
    """Return a step after ``clip_grad_norm_``, as written for optimizers that do not clip."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM, foreach=foreach)
        optimizer.step()

    return step
