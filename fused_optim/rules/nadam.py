"""NAdam."""

from typing import NamedTuple

from torch import Tensor

from fused_optim.rules.common import Rule, State, keep, power, root


class NAdamHyper(NamedTuple):
    """Options of NAdam; ``warmup`` is ``0.96 ** momentum_decay``, ``weight_decay`` decoupled."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    warmup: Tensor
    weight_decay: Tensor


class NAdamScalars(NamedTuple):
    """Scalars of :func:`nadam`."""

    decay: Tensor
    beta1: Tensor
    weight1: Tensor
    weight2: Tensor
    lr: Tensor
    grad_share: Tensor
    avg_share: Tensor
    inv_bias2_sqrt: Tensor
    eps: Tensor


def nadam_scalars(
    hyper: NAdamHyper, step: Tensor, running: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], NAdamScalars]:
    """Scalars of :func:`nadam`, and the product of all momenta so far."""
    lr, beta1, beta2, eps, warmup, weight_decay = hyper
    (mu_product,) = running
    mu = beta1 * (1.0 - 0.5 * power(warmup, step))
    mu_next = beta1 * (1.0 - 0.5 * power(warmup, step + 1.0))
    mu_product = mu_product * mu
    h = NAdamScalars(
        lr * weight_decay,
        beta1,
        1.0 - beta1,
        1.0 - beta2,
        lr,
        (1.0 - mu) / (1.0 - mu_product),
        mu_next / (1.0 - mu_product * mu_next),
        1.0 / root(1.0 - power(beta2, step)),
        eps,
    )
    return (mu_product,), h


def nadam(p: Tensor, g: Tensor, state: State, h: NAdamScalars) -> tuple[Tensor, State]:
    """NAdam, Dozat 2016 (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""
    exp_avg, exp_avg_sq = state
    exp_avg = h.beta1 * exp_avg + h.weight1 * g
    exp_avg_sq = keep(exp_avg_sq, h.weight2) + (h.weight2 * g) * g
    denom = root(exp_avg_sq) * h.inv_bias2_sqrt + h.eps
    ahead = h.grad_share * g + h.avg_share * exp_avg
    return keep(p, h.decay) - h.lr * (ahead / denom), (exp_avg, exp_avg_sq)


NADAM = Rule(
    nadam,
    nadam_scalars,
    NAdamHyper,
    NAdamScalars,
    ("exp_avg", "exp_avg_sq"),
    counters=("step", "mu_product"),
    unsigned=(("exp_avg_sq", "beta2"),),
)
