"""Oracles in numpy of optimizers for matrices, as those of oracles.py.

The products have the dtype of the arithmetic: torch.optim.Muon rounds them to bf16 in every dtype,
and its float64 is no oracle.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
COEFFICIENTS = (3.4445, -4.775, 2.0315)


def newton_schulz(x: Array, steps: int, eps: float) -> Array:
    """Apply the quintic steps of Jordan et al. 2024 to a matrix of Frobenius norm 1."""
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / max(float(np.linalg.norm(wide.astype(np.float64))), eps)
    wide = wide.astype(x.dtype)
    a, b, c = (x.dtype.type(value) for value in COEFFICIENTS)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * (gram @ gram)) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


def form_direction(g: Array, state: dict[str, Any], momentum: float, nesterov: bool) -> Array:
    """Update the momentum; return it, or Nesterov's direction."""
    buffer = momentum * state.get("momentum_buffer", np.zeros_like(g)) + (1 - momentum) * g
    state["momentum_buffer"] = buffer
    return momentum * buffer + (1 - momentum) * g if nesterov else buffer


def muon(
    p: Array,
    g: Array,
    state: dict[str, Any],
    t: int,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    eps: float = 1e-7,
    adjust_lr_fn: str = "original",
) -> Array:
    """Update by Muon, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/)."""
    rows, columns = p.shape
    factor = math.sqrt(max(1, rows / columns))
    if adjust_lr_fn == "match_rms_adamw":
        factor = 0.2 * math.sqrt(max(rows, columns))
    direction = newton_schulz(form_direction(g, state, momentum, nesterov), ns_steps, eps)
    return (1 - lr * weight_decay) * p - lr * factor * direction


def normuon(
    p: Array,
    g: Array,
    state: dict[str, Any],
    t: int,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    beta2: float = 0.95,
) -> Array:
    """Update by NorMuon, Li et al. 2025, algorithm 1 (https://arxiv.org/abs/2510.05491)."""
    direction = newton_schulz(form_direction(g, state, momentum, True), 5, 1e-7)
    moment = state.get("row_second_moment", np.zeros_like(p[:, :1]))
    moment = beta2 * moment + (1 - beta2) * (direction * direction).mean(1, keepdims=True)
    state["row_second_moment"] = moment
    direction = direction / (np.sqrt(moment) + 1e-10)
    rate = 0.2 * lr * math.sqrt(p.size) / float(np.linalg.norm(direction))
    return (1 - lr * weight_decay) * p - rate * direction


MATRIX_ORACLES: dict[str, Callable[..., Array]] = {"Muon": muon, "NorMuon": normuon}
