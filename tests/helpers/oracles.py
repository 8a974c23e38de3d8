"""Oracles in numpy from the papers, for optimizers that torch.optim lacks.

``state`` is a dict that lives from step to step, under the names that the optimizer uses; ``t``
counts from 1; the options and their defaults are those of the authors. The dtype of ``p`` and ``g``
is that of the arithmetic, scalars are Python's floats.
"""

import math

import numpy as np


def adan(
    p,
    g,
    state,
    t,
    lr=1e-3,
    betas=(0.98, 0.92, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    no_prox=False,
):
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
    p,
    g,
    state,
    t,
    lr=1e-3,
    betas=(0.9, 0.999, 0.9999),
    alpha=2.0,
    beta3_warmup=None,
    alpha_warmup=None,
    eps=1e-8,
    weight_decay=0.0,
):
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


def lion(p, g, state, t, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    """Update by Lion, Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675)."""
    beta1, beta2 = betas
    m = state.get("exp_avg", np.zeros_like(p))
    c = beta1 * m + (1 - beta1) * g
    state["exp_avg"] = beta2 * m + (1 - beta2) * g
    return (1 - lr * weight_decay) * p - lr * np.sign(c)


def schedule_free_adamw(
    p,
    g,
    state,
    t,
    lr=0.0025,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
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
    p,
    g,
    state,
    t,
    lr=1.0,
    momentum=0.9,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
    """Update by schedule-free SGD, Defazio et al. 2024 (https://arxiv.org/abs/2405.15682).

    The rule is that of equations 2 to 4 of the paper.
    """
    rate = lr * (min(1, t / warmup_steps) if warmup_steps else 1)
    move = -rate * (g + weight_decay * p)
    return average_iterates(p, move, state, t, rate, momentum, r, weight_lr_power)


def average_iterates(p, move, state, t, rate, beta, r, weight_lr_power):
    """Move z, average it into x with the weights of the authors' code, and return y."""
    z = state.get("z", p) + move
    state["lr_max"] = max(rate, state.get("lr_max", 0.0))
    weight = t**r * state["lr_max"] ** weight_lr_power
    state["weight_sum"] = state.get("weight_sum", 0.0) + weight
    c = weight / state["weight_sum"]
    x = (1 - c) * state.get("x", p) + c * z
    state.update(z=z, x=x)
    return (1 - beta) * z + beta * x
