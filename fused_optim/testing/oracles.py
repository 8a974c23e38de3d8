"""Oracles in numpy from the papers, for optimizers that torch.optim lacks.

``state`` is a dict that lives from step to step, under the names that the optimizer uses; ``t``
counts from 1; the options and their defaults are those of the authors. The dtype of ``p`` and ``g``
is that of the arithmetic, scalars are Python's floats.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# numpy types the result of arithmetic on arrays of any dtype as Any
Array = Any
State = dict[str, Any]
Betas = tuple[float, ...]


def adan(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1e-3,
    betas: Betas = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
) -> Array:
    """Update by Adan, Xie et al. 2022, algorithm 1 (https://arxiv.org/abs/2208.06677).

    The betas are 1 - beta of the paper, and the averages are corrected as in the authors' code.
    """
    beta1, beta2, beta3 = betas
    zero = np.zeros_like(p)
    diff = g - state.get("pre_grad", g)
    m = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
    v = beta2 * state.get("exp_avg_diff", zero) + (1 - beta2) * diff
    n = beta3 * state.get("exp_avg_sq", zero) + (1 - beta3) * (g + beta2 * diff) ** 2
    state.update(exp_avg=m, exp_avg_diff=v, exp_avg_sq=n, pre_grad=g)
    m, v, n = (x / (1 - beta**t) for x, beta in zip((m, v, n), betas, strict=True))
    rate = lr / (np.sqrt(n) + eps)
    if no_prox:
        return (1 - lr * weight_decay) * p - rate * (m + beta2 * v)
    return (p - rate * (m + beta2 * v)) / (1 + lr * weight_decay)


def ademamix(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999, 0.9999),
    alpha: float = 2.0,
    beta3_warmup: int | None = None,
    alpha_warmup: int | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Array:
    """Update by AdEMAMix, Pagliardini et al. 2024, algorithm 1 (https://arxiv.org/abs/2409.03137)."""
    beta1, beta2, beta3 = betas
    if alpha_warmup is not None:
        alpha = min(t * alpha / alpha_warmup, alpha)
    if beta3_warmup is not None and t < beta3_warmup:
        # by half-lives, which also holds for beta1 = 0
        start, end = (-math.log(2) / math.log(b) if b else 0.0 for b in (beta1, beta3))
        beta3 = 0.5 ** (1 / (start + t / beta3_warmup * (end - start)))
    zero = np.zeros_like(p)
    m1 = beta1 * state.get("exp_avg_fast", zero) + (1 - beta1) * g
    m2 = beta3 * state.get("exp_avg_slow", zero) + (1 - beta3) * g
    nu = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    state.update(exp_avg_slow=m2, exp_avg_sq=nu)
    if beta1:
        state["exp_avg_fast"] = m1
    m1_hat, nu_hat = m1 / (1 - beta1**t), nu / (1 - beta2**t)
    return p - lr * ((m1_hat + alpha * m2) / (np.sqrt(nu_hat) + eps) + weight_decay * p)


def lion(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1e-4,
    betas: Betas = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> Array:
    """Update by Lion, Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675)."""
    beta1, beta2 = betas
    m = state.get("exp_avg", np.zeros_like(p))
    c = beta1 * m + (1 - beta1) * g
    state["exp_avg"] = beta2 * m + (1 - beta2) * g
    return (1 - lr * weight_decay) * p - lr * np.sign(c)


def schedule_free_adamw(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 0.0025,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Array:
    """Update by schedule-free AdamW, Defazio et al. 2024 (https://arxiv.org/abs/2405.15682).

    The rule is algorithm 1 of the paper.
    """
    beta1, beta2 = betas
    v = beta2 * state.get("exp_avg_sq", np.zeros_like(p)) + (1 - beta2) * g * g
    rate = lr * math.sqrt(1 - beta2**t) * (min(1, t / warmup_steps) if warmup_steps else 1)
    state["exp_avg_sq"] = v
    move = -rate * (g / (np.sqrt(v) + eps)) - rate * weight_decay * p
    return average_iterates(p, move, state, t, rate, beta1, r, weight_lr_power)


def schedule_free_sgd(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Array:
    """Update by schedule-free SGD, Defazio et al. 2024 (https://arxiv.org/abs/2405.15682).

    The rule is that of equations 2 to 4 of the paper.
    """
    rate = lr * (min(1, t / warmup_steps) if warmup_steps else 1)
    move = -rate * (g + weight_decay * p)
    return average_iterates(p, move, state, t, rate, momentum, r, weight_lr_power)


def average_iterates(
    p: Array,
    move: Array,
    state: State,
    t: int,
    rate: float,
    beta: float,
    r: float,
    weight_lr_power: float,
) -> Array:
    """Move z, average it into x with the weights of the authors' code, and return y."""
    z = state.get("z", p) + move
    state["lr_max"] = max(rate, state.get("lr_max", 0.0))
    weight = t**r * state["lr_max"] ** weight_lr_power
    state["weight_sum"] = state.get("weight_sum", 0.0) + weight
    c = weight / state["weight_sum"]
    x = (1 - c) * state.get("x", p) + c * z
    state.update(z=z, x=x)
    return (1 - beta) * z + beta * x


def lamb(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
    norm_bounds: tuple[float, float] = (0.0, math.inf),
    adapt: bool = True,
) -> Array:
    """Update by LAMB, You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962)."""
    zero = np.zeros_like(p)
    m = betas[0] * state.get("exp_avg", zero) + (1 - betas[0]) * g
    v = betas[1] * state.get("exp_avg_sq", zero) + (1 - betas[1]) * g * g
    state.update(exp_avg=m, exp_avg_sq=v)
    m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    update = m / (np.sqrt(v) + p.dtype.type(eps)) + weight_decay * p
    norms = np.clip(np.linalg.norm(p), *norm_bounds), np.linalg.norm(update)
    trust = norms[0] / norms[1] if adapt and norms[0] and norms[1] else p.dtype.type(1)
    return p - lr * trust * update


def lars(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1e-1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    eps: float = 1e-8,
) -> Array:
    """Update by LARS, You et al. 2017, algorithm 1 (https://arxiv.org/abs/1708.03888)."""
    norms = np.linalg.norm(p), np.linalg.norm(g)
    local = p.dtype.type(1)
    if norms[0] and norms[1]:
        local = trust_coefficient * norms[0] / (norms[1] + weight_decay * norms[0] + eps)
    start = state.get("momentum_buffer", np.zeros_like(p))
    state["momentum_buffer"] = momentum * start + lr * local * (g + weight_decay * p)
    return p - state["momentum_buffer"]


def stable_adamw(
    p: Array,
    g: Array,
    state: State,
    t: int,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
) -> Array:
    """Update by StableAdamW, Wortsman et al. 2023, algorithm 2 (https://arxiv.org/abs/2304.13013)."""
    b1, b2 = ((b * (1 - b ** (t - 1)) / (1 - b**t)) for b in betas)
    zero = np.zeros_like(p)
    m = b1 * state.get("exp_avg", zero) + (1 - b1) * g
    v = b2 * state.get("exp_avg_sq", zero) + (1 - b2) * g * g
    state.update(exp_avg=m, exp_avg_sq=v)
    rms = np.sqrt(np.mean(g * g / np.maximum(v, eps**2))) if p.size else p.dtype.type(1)
    rate = lr / max(p.dtype.type(1), rms)
    return p - rate * weight_decay * p - rate * m / (np.sqrt(v) + eps)


# by the name of the class in fused_optim
ORACLES: dict[str, Callable[..., Array]] = {
    "Adan": adan,
    "AdEMAMix": ademamix,
    "LAMB": lamb,
    "LARS": lars,
    "Lion": lion,
    "ScheduleFreeAdamW": schedule_free_adamw,
    "ScheduleFreeSGD": schedule_free_sgd,
    "StableAdamW": stable_adamw,
}
