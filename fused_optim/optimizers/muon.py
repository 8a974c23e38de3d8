"""Muon."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from fused_optim import options
from fused_optim.backends.matrix_runner import direction_dtype
from fused_optim.dtensors import describe_bad_matrix_sharding
from fused_optim.matrix.blocks import Cut, describe_misfit
from fused_optim.matrix.newton_schulz import (
    DEFAULT_COEFFICIENTS,
    POLAR_EXPRESS,
    NewtonSchulz,
    direction_factor,
    orthogonalize,
)
from fused_optim.matrix.symmetric_products import PRODUCTS
from fused_optim.optimizers.base import Group
from fused_optim.optimizers.mixed import MixedOptimizer
from fused_optim.private_api import is_fsdp1_flat
from fused_optim.rules import muon
from fused_optim.rules.common import MatrixStep, Rule
from fused_optim.tensor_checks import describe_param
from fused_optim.validation import Check, all_of, finite, nonnegative, one_of, optional, to_number

Triple = tuple[float, float, float]
Coefficients = Triple | Sequence[Triple] | Literal["polar_express"]
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def _should_be_nonnegative(words: str) -> Check:
    """Return a check that raises ValueError unless a value is >= 0, with torch's words first."""

    def check(name: str, value: Any) -> None:
        if not to_number(name, value) >= 0:
            raise ValueError(
                f"{words} should be >= 0 but is: {value}: {name} must be >= 0, got {value!r}"
            )

    return check


def _check_coefficients(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is three numbers, triples of them, or a name."""
    if isinstance(value, str):
        one_of(("polar_express",))(name, value)
        return
    triples = value if value and isinstance(value[0], (tuple, list)) else [value]
    for triple in triples:
        if len(triple) != 3:
            raise ValueError(
                "Coefficients must be a tuple of exactly 3 values: "
                f"{name} must be (a, b, c), or one such triple for each step, got {value!r}"
            )
        for coefficient in triple:
            to_number(name, coefficient)


def _count_from(least: int, most: int) -> Check:
    """Return a check that raises ValueError unless a value is an int in [least, most]."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number in [{least}, {most}], got {value!r}")

    return check


def _check_adjust_lr_fn(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` names an adjustment of the learning rate, or is None."""
    if value not in (None, "original", "match_rms_adamw"):
        raise ValueError(
            f"Adjust learning rate function {value} is not supported: {name} must be None, "
            f"'original' or 'match_rms_adamw', got {value!r}"
        )


def _check_split(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a sequence of positive numbers of rows."""
    for part in value:
        _count_from(1, 2**62)(f"{name}[i]", part)


def _check_dtype(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a dtype in which matrices can be multiplied."""
    if value not in DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(map(str, DTYPES))}, got {value!r}")


class Muon(MixedOptimizer):
    """Muon, momentum orthogonalized by Newton-Schulz: the drop-in for ``torch.optim.Muon``.

    A group with ``algorithm="adamw"``, or the lower-case name of another optimizer of the library,
    is updated by that rule in the same step, under one norm: Muon is for the matrices of hidden
    layers only, and :func:`fused_optim.param_groups_for_muon` makes the groups of a model.

    Args:
        params: parameters, ``(name, parameter)`` pairs, or dicts that define groups.
        lr: learning rate; a float, or a one-element tensor that is read at each step.
        weight_decay: decoupled weight decay: each step subtracts ``lr * weight_decay * p``.
        momentum: decay rate of the momentum.
        nesterov: use Nesterov momentum.
        ns_coefficients: coefficients (a, b, c) of a Newton-Schulz step, a sequence of them for each
            step, or ``"polar_express"``.
        eps: least norm by which a matrix is divided.
        ns_steps: number of Newton-Schulz steps, less than 100.
        adjust_lr_fn: factor of the learning rate of each matrix by its shape: ``"original"``
            (also None) or ``"match_rms_adamw"``, with which rates of AdamW remain valid.
        maximize: maximize the objective.
        ns_algorithm: ``"standard"``, ``"gram"``, which needs fewer operations for matrices that are
            not square, or ``"auto"``: Gram where the ratio of the dims is above 2.
        ns_dtype: dtype of the products; None for bf16, float32 on the CPU.
        ns_max_batch: maximum number of matrices that are multiplied at once, which bounds the
            memory of the products; None for all of one shape.
        ns_products: library that forms the symmetric products: ``"torch"``, or ``"quack"``, the
            package quack-kernels for NVIDIA GPUs (``pip install fused-optim[quack]``), which
            computes half of each.
        batch_dims: for parameters with more than two dims, the number of dims before those of a
            matrix: 0 flattens all dims after the first, as for convolutions; 1 is for experts.
        split: numbers of rows of the matrices that are stacked in a parameter, as in a fused
            projection of query, key and value.
        heads: number of matrices of equal size into which the rows of each are divided.
        additions: see :class:`fused_optim.Additions`.

    State: ``momentum_buffer`` in the parameter's dtype, 4 bytes per element in fp32.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; match_rms_adamw: Liu et
    al. 2025, https://arxiv.org/abs/2502.16982
    """

    WEIGHT_DECAY = "decoupled"
    REFUSAL = "Muon does not support sparse gradients"
    OWN_BOUNDS: ClassVar = {
        "lr": _should_be_nonnegative("Learning rate"),
        "momentum": _should_be_nonnegative("momentum"),
        "weight_decay": all_of(_should_be_nonnegative("weight decay"), finite),
        "ns_coefficients": _check_coefficients,
        "eps": nonnegative,
        "ns_steps": _count_from(0, 99),
        "adjust_lr_fn": _check_adjust_lr_fn,
        "ns_algorithm": one_of(("auto", "standard", "gram")),
        "ns_dtype": optional(_check_dtype),
        "ns_max_batch": optional(_count_from(1, 2**62)),
        "ns_products": one_of(tuple(PRODUCTS)),
        "batch_dims": optional(_count_from(0, 8)),
        "split": optional(_check_split),
        "heads": _count_from(1, 2**62),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = DEFAULT_COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        maximize: bool = False,
        ns_algorithm: Literal["auto", "standard", "gram"] = "auto",
        ns_dtype: torch.dtype | None = None,
        ns_max_batch: int | None = None,
        ns_products: Literal["torch", "quack"] = "torch",
        batch_dims: int | None = None,
        split: Sequence[int] | None = None,
        heads: int = 1,
        **additions: Unpack[options.Additions],
    ) -> None:
        defaults: Group = dict(lr=lr, weight_decay=weight_decay, momentum=momentum)
        defaults |= dict(nesterov=nesterov, ns_coefficients=ns_coefficients, eps=eps)
        defaults |= dict(ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn, maximize=maximize)
        defaults |= dict(ns_algorithm=ns_algorithm, ns_dtype=ns_dtype, ns_max_batch=ns_max_batch)
        defaults |= dict(ns_products=ns_products)
        defaults |= dict(batch_dims=batch_dims, split=split, heads=heads)
        super().__init__(params, defaults, additions)

    @override
    def own_rule(self, group: Group) -> Rule:
        rule = muon.MUON_NESTEROV if group["nesterov"] else muon.MUON
        settings, cut = _read_settings(group), _read_cut(group)
        step = MatrixStep(orthogonalize, settings, cut, muon.MUON_APPLY, factor=direction_factor)
        return rule._replace(matrix_step=step)

    @override
    def own_check(self, group: Group) -> None:
        given, steps = group["ns_coefficients"], group["ns_steps"]
        if _is_for_each_step(given) and len(given) < steps:
            raise ValueError(
                f"ns_coefficients must have a triple for each of ns_steps={steps} steps, "
                f"got {len(given)}"
            )

    @override
    def own_check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        described = describe_param(param, group_index, name)
        if is_fsdp1_flat(param):
            raise ValueError(
                f"{described} must not be flattened by FullyShardedDataParallel (FSDP1), which "
                "hides its matrix: use FSDP2, torch.distributed.fsdp.fully_shard"
            )
        cut = _read_cut(self.param_groups[group_index])
        misfit = describe_misfit(param.shape, cut)
        if misfit is not None:
            raise ValueError(
                "Muon only supports 2D parameters whereas we found a parameter with size: "
                f"{param.size()}: {described} must {misfit}; put vectors and embeddings in a group "
                "with algorithm='adamw'"
            )
        if param.is_complex():
            raise ValueError(f"Muon does not support complex parameters: got {described}")
        problem = describe_bad_matrix_sharding(param, cut.batch_dims or 0)
        if problem is None:
            problem = self._describe_bad_products(self.param_groups[group_index], param.device)
        if problem is not None:
            raise ValueError(f"{described} must {problem}")

    def _describe_bad_products(self, group: Group, device: torch.device) -> str | None:
        """Return the requirement of ``ns_products`` that parameters on ``device`` fail, or None."""
        step = self.own_rule(group).matrix_step
        assert step is not None
        products = PRODUCTS[group["ns_products"]]
        return products.describe_unsupported(device, direction_dtype(step, device))


def _is_for_each_step(coefficients: Any) -> bool:
    return not isinstance(coefficients, str) and isinstance(coefficients[0], (tuple, list))


def _read_cut(group: Group) -> Cut:
    """Return the division of the parameters of a group into matrices."""
    return Cut(group["batch_dims"], tuple(group["split"] or ()), group["heads"])


def _read_settings(group: Group) -> NewtonSchulz:
    """Return the settings of the orthogonalization."""
    given, steps = group["ns_coefficients"], group["ns_steps"]
    if isinstance(given, str):
        triples = [*POLAR_EXPRESS, *[POLAR_EXPRESS[-1]] * steps][:steps]
    elif _is_for_each_step(given):
        triples = list(given)[:steps]
    else:
        triples = [given] * steps
    return NewtonSchulz(
        tuple((float(a), float(b), float(c)) for a, b, c in triples),
        float(group["eps"]),
        group["ns_algorithm"],
        group["adjust_lr_fn"] or "original",
        group["ns_dtype"],
        group["ns_max_batch"],
        group["ns_products"],
    )
