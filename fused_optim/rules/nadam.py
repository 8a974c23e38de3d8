"""NAdam."""

from typing import NamedTuple

from torch import Tensor

from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


class NAdamHparams(NamedTuple):
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
    hparams: NAdamHparams, step: Tensor, running: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], NAdamScalars]:
    """Scalars of :func:`nadam`, and the product of all momenta so far."""
    lr, beta1, beta2, eps, warmup, weight_decay = hparams
    (mu_product,) = running
    mu = beta1 * (1.0 - 0.5 * pow_int(warmup, step))
    mu_next = beta1 * (1.0 - 0.5 * pow_int(warmup, step + 1.0))
    mu_product = mu_product * mu
    s = NAdamScalars(
        lr * weight_decay,
        beta1,
        1.0 - beta1,
        1.0 - beta2,
        lr,
        (1.0 - mu) / (1.0 - mu_product),
        mu_next / (1.0 - mu_product * mu_next),
        1.0 / sqrt_rn(1.0 - pow_int(beta2, step)),
        eps,
    )
    return (mu_product,), s


def nadam(p: Tensor, g: Tensor, state: State, s: NAdamScalars) -> tuple[Tensor, State]:
    """NAdam, Dozat 2016 (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""
    exp_avg, exp_avg_sq = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias2_sqrt + s.eps
    ahead = s.grad_share * g + s.avg_share * exp_avg
    return decay(p, s.decay) - s.lr * (ahead / denom), (exp_avg, exp_avg_sq)


NADAM = Rule(
    nadam,
    nadam_scalars,
    NAdamHparams,
    NAdamScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step", "mu_product"),
    nonnegative=(("exp_avg_sq", "beta2"),),
)
