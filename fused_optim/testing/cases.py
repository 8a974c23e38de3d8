"""The variants of every optimizer that tests and checks run, one line each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fused_optim
from fused_optim.optimizers.base import FusedOptimizer


@dataclass(frozen=True)
class Case:
    """A variant of one optimizer.

    Attributes:
        name: identifier, as ``fused-optim check --optimizer`` takes it.
        class_name: name of the class in ``fused_optim``, and in ``torch.optim`` if torch has it.
        options: constructor arguments of both classes.
        additions: constructor arguments of ours alone; ``step_torch`` does the same in torch.
        matrices: True if the optimizer updates matrices only.
        sparse: True if the gradients are sparse, as of an embedding with ``sparse=True``.
    """

    name: str
    class_name: str
    options: dict[str, Any] = field(default_factory=dict)
    additions: dict[str, Any] = field(default_factory=dict)
    matrices: bool = False
    sparse: bool = False

    @property
    def fused(self) -> Callable[..., FusedOptimizer]:
        """The class in ``fused_optim``."""
        fused: Callable[..., FusedOptimizer] = getattr(fused_optim, self.class_name)
        return fused

    @property
    def torch_class(self) -> Callable[..., torch.optim.Optimizer] | None:
        """The class in ``torch.optim``; None if an oracle of oracles.py replaces it."""
        # torch.optim.Muon rounds products to bf16, whatever the dtype
        return None if self.matrices else getattr(torch.optim, self.class_name, None)


DECAY: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3}
HEAVY: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
CASES = [
    Case("adamw", "AdamW"),
    Case("adamw-decay", "AdamW", DECAY),
    Case("adamw-amsgrad", "AdamW", {"amsgrad": True, **DECAY}),
    Case("adamw-maximize", "AdamW", {"maximize": True, **DECAY}),
    Case("adamw-betas", "AdamW", {"betas": (0.0, 0.5), "eps": 1e-3}),
    Case("adamw-tensor-lr", "AdamW", {"lr": torch.tensor(0.03)}),
    Case("adam", "Adam"),
    Case("adam-l2", "Adam", DECAY),
    Case("adam-decoupled", "Adam", {"decoupled_weight_decay": True, **DECAY}),
    Case("adam-amsgrad", "Adam", {"amsgrad": True, "betas": (0.9, 0.8)}),
    Case("adam-maximize", "Adam", {"maximize": True, **DECAY}),
    Case("sgd", "SGD", {"lr": 0.1}),
    Case("sgd-l2", "SGD", DECAY),
    Case("sgd-momentum", "SGD", {**HEAVY, "weight_decay": 0.1}),
    Case("sgd-dampened", "SGD", {**HEAVY, "dampening": 0.5}),
    Case("sgd-nesterov", "SGD", {**HEAVY, "nesterov": True, "weight_decay": 0.1}),
    Case("sgd-maximize", "SGD", {**HEAVY, "maximize": True}),
    Case("adamw-norm", "AdamW", {"eps": 1e-2, **DECAY}, {"max_grad_norm": 1.0}),
    Case("adamw-norm-unreached", "AdamW", DECAY, {"max_grad_norm": 1e6}),
    Case("sgd-norm", "SGD", {**HEAVY, "maximize": True}, {"max_grad_norm": 1.0}),
    Case("sgd-value", "SGD", HEAVY, {"max_grad_value": 0.25}),
    Case("sgd-norm-value", "SGD", HEAVY, {"max_grad_norm": 5.0, "max_grad_value": 0.1}),
    Case(
        "sgd-everything",
        "SGD",
        {**HEAVY, "weight_decay": 0.3, "maximize": True},
        {"max_grad_norm": 4.0, "max_grad_value": 0.1, "l1": 0.2},
    ),
    Case("sgd-l1", "SGD", HEAVY, {"l1": 0.2}),
    Case("adam-l1-l2", "Adam", {"eps": 1e-2, **DECAY}, {"l1": 0.2}),
    Case("adamw-skip", "AdamW", DECAY, {"nonfinite": "skip"}),
    Case("lamb", "LAMB"),
    Case("lamb-bounds", "LAMB", {"norm_bounds": (0.5, 2.0), **DECAY}),
    Case("lamb-maximize", "LAMB", {"adapt": False, "maximize": True, **DECAY}),
    Case("lars", "LARS"),
    Case("lars-decay", "LARS", {"trust_coefficient": 0.1, "maximize": True, **DECAY}),
    Case("stable-adamw", "StableAdamW"),
    Case("stable-adamw-decay", "StableAdamW", {"betas": (0.5, 0.8), **DECAY}),
    Case("adan", "Adan"),
    Case("adan-decay", "Adan", {"betas": (0.9, 0.7, 0.8), "eps": 1e-3, **DECAY}),
    Case("adan-no-prox", "Adan", {"no_prox": True, "eps": 1e-3, **DECAY}),
    Case("ademamix", "AdEMAMix"),
    Case("ademamix-decay", "AdEMAMix", {"betas": (0.5, 0.9, 0.99), "eps": 1e-3, **DECAY}),
    Case("ademamix-warmups", "AdEMAMix", {"beta3_warmup": 40, "alpha_warmup": 30}),
    Case("ademamix-slow", "AdEMAMix", {"betas": (0.0, 0.9, 0.99), "beta3_warmup": 40}),
    Case("free-adamw", "ScheduleFreeAdamW"),
    Case("free-adamw-decay", "ScheduleFreeAdamW", {"warmup_steps": 20, **DECAY}),
    Case("free-adamw-powers", "ScheduleFreeAdamW", {"r": 0.7, "weight_lr_power": 1.5}),
    Case("free-sgd", "ScheduleFreeSGD"),
    Case("free-sgd-l2", "ScheduleFreeSGD", {"warmup_steps": 20, **DECAY}),
    Case("free-sgd-maximize", "ScheduleFreeSGD", {"momentum": 0.5, "maximize": True}),
    Case("lion", "Lion"),
    Case("lion-decay", "Lion", {**DECAY, "betas": (0.5, 0.8)}),
    Case("lion-maximize", "Lion", {**DECAY, "maximize": True}),
    Case("asgd", "ASGD"),
    Case("asgd-l2", "ASGD", {**DECAY, "lambd": 0.5, "t0": 10}),
    Case("asgd-maximize", "ASGD", {"maximize": True, "alpha": 2, "lambd": 0.1, "t0": 0}),
    Case("rmsprop", "RMSprop"),
    Case("rmsprop-l2", "RMSprop", {**DECAY, "alpha": 0.5, "eps": 1e-2}),
    Case("rmsprop-momentum", "RMSprop", {"momentum": 0.9}),
    Case("rmsprop-centered", "RMSprop", {"centered": True, "eps": 1e-2}),
    Case("rmsprop-both", "RMSprop", {"centered": True, "momentum": 0.9, "maximize": True}),
    Case("rmsprop-maximize", "RMSprop", {"maximize": True, **DECAY}),
    Case("adagrad", "Adagrad"),
    Case("adagrad-l2", "Adagrad", {**DECAY, "lr_decay": 0.2, "eps": 1e-2}),
    Case("adagrad-start", "Adagrad", {"initial_accumulator_value": 0.5, "lr": 0.1}),
    Case("adagrad-maximize", "Adagrad", {"maximize": True, **DECAY}),
    Case("nadam", "NAdam"),
    # mu_product is one number with 50 roundings: at a decay of 0.1, say, torch's cancel by luck
    Case("nadam-l2", "NAdam", {**DECAY, "momentum_decay": 0.5, "eps": 1e-3}),
    Case("nadam-decoupled", "NAdam", {**DECAY, "decoupled_weight_decay": True}),
    Case("nadam-maximize", "NAdam", {"maximize": True, "betas": (0.5, 0.8), **DECAY}),
    # rho exceeds 5 from step 6 on with a large beta2, and never with a small one
    Case("radam", "RAdam"),
    Case("radam-unrectified", "RAdam", {"betas": (0.9, 0.6)}),
    Case("radam-l2", "RAdam", {**DECAY, "eps": 1e-3}),
    Case("radam-decoupled", "RAdam", {**DECAY, "decoupled_weight_decay": True}),
    Case("radam-maximize", "RAdam", {"maximize": True, "betas": (0.8, 0.9), **DECAY}),
    Case("adamax", "Adamax"),
    Case("adamax-l2", "Adamax", {**DECAY, "betas": (0.5, 0.9), "eps": 1e-2}),
    Case("adamax-maximize", "Adamax", {"maximize": True, **DECAY}),
    Case("adadelta", "Adadelta"),
    Case("adadelta-l2", "Adadelta", {**DECAY, "rho": 0.99, "eps": 1e-3}),
    Case("adadelta-maximize", "Adadelta", {"maximize": True, "weight_decay": 0.1}),
]

MATRIX_CASES = [
    Case("muon", "Muon", {"lr": 0.02}, matrices=True),
    Case(
        "muon-plain",
        "Muon",
        {"lr": 0.1, "nesterov": False, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"},
        matrices=True,
    ),
    Case("normuon", "NorMuon", {"lr": 0.02}, matrices=True),
]

SPARSE_CASES = [
    Case("sparse-adam", "SparseAdam", {"lr": 0.1, "eps": 1e-3}, sparse=True),
    Case("sparse-adagrad", "Adagrad", {"lr": 0.1, "eps": 1e-2}, sparse=True),
]

# the first case of each class, for tests that do not depend on the options
ONE_PER_CLASS = list({case.class_name: case for case in reversed(CASES)}.values())[::-1]


def get_name(case: Case) -> str:
    """Return the identifier of a parameter set."""
    return case.name


def find_case(name: str) -> Case:
    """Return the first case of an optimizer; a wrong name must not leave a test without cases."""
    return next(case for case in CASES if case.class_name == name)


def step_torch(optimizer: torch.optim.Optimizer, additions: dict[str, Any]) -> None:
    """Take a step of torch.optim, with the effect of our additions spelled out around it."""
    groups = optimizer.param_groups
    params: list[Tensor] = [p for g in groups for p in g["params"] if p.grad is not None]
    if additions.get("nonfinite") == "skip":
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if not math.isfinite(norm):
            return
    if "max_grad_norm" in additions:
        torch.nn.utils.clip_grad_norm_(params, additions["max_grad_norm"])
    if "max_grad_value" in additions:
        torch.nn.utils.clip_grad_value_(params, additions["max_grad_value"])
    for group in groups:
        sign = -1 if group.get("maximize") else 1
        for p in group["params"]:
            if "l1" in additions and p.grad is not None:
                p.grad += sign * additions["l1"] * p.detach().sign()
    optimizer.step()
