"""NAdam."""

from torch import Tensor

from fused_optim.kernels.rules.signatures import NAdamHparams, NAdamScalars
from fused_optim.rules.common import Rule, State, decay, pow_int, sqrt_rn


def nadam_scalars(
    hparams: NAdamHparams, step: Tensor, running: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], NAdamScalars]:
    """Return the scalars of :func:`nadam`, and the product of all momenta so far."""
    (mu_product,) = running
    mu = hparams.beta1 * (1.0 - 0.5 * pow_int(hparams.warmup, step))
    mu_next = hparams.beta1 * (1.0 - 0.5 * pow_int(hparams.warmup, step + 1.0))
    mu_product = mu_product * mu
    s = NAdamScalars(
        decay=hparams.lr * hparams.weight_decay,
        beta1=hparams.beta1,
        weight1=1.0 - hparams.beta1,
        weight2=1.0 - hparams.beta2,
        lr=hparams.lr,
        grad_share=(1.0 - mu) / (1.0 - mu_product),
        avg_share=mu_next / (1.0 - mu_product * mu_next),
        inv_bias_correction2_sqrt=1.0 / sqrt_rn(1.0 - pow_int(hparams.beta2, step)),
        eps=hparams.eps,
    )
    return (mu_product,), s


def nadam(p: Tensor, g: Tensor, state: State, s: NAdamScalars) -> tuple[Tensor, State]:
    """NAdam, Dozat 2016 (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""
    exp_avg, exp_avg_sq = state
    exp_avg = s.beta1 * exp_avg + s.weight1 * g
    exp_avg_sq = decay(exp_avg_sq, s.weight2) + (s.weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * s.inv_bias_correction2_sqrt + s.eps
    lookahead = s.grad_share * g + s.avg_share * exp_avg
    return decay(p, s.decay) - s.lr * (lookahead / denom), (exp_avg, exp_avg_sq)


NADAM = Rule(
    nadam,
    nadam_scalars,
    NAdamHparams,
    NAdamScalars,
    ("exp_avg", "exp_avg_sq"),
    scalar_state=("step", "mu_product"),
    nonnegative=(("exp_avg_sq", "beta2"),),
    decays=True,
)
