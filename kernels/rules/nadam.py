"""NAdam: the same page as fused_optim/rules/nadam.py."""

import triton
import triton.language as tl  # noqa: F401  the interpreter looks for it on each page

from fused_optim.kernels.rules.common import div_rn, decay, pow_int, sqrt_rn


@triton.jit
def nadam_scalars(hparams, step, running):
    """Scalars of :func:`nadam`, and the product of all momenta so far."""
    lr, beta1, beta2, eps, warmup, weight_decay = hparams
    (mu_product,) = running
    mu = beta1 * (1.0 - 0.5 * pow_int(warmup, step))
    mu_next = beta1 * (1.0 - 0.5 * pow_int(warmup, step + 1.0))
    mu_product = mu_product * mu
    s = (
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


@triton.jit
def nadam(p, g, state, s):
    """NAdam, Dozat 2016 (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""
    exp_avg, exp_avg_sq = state
    decay, beta1, weight1, weight2, lr, grad_share, avg_share, inv_bias2_sqrt, eps = s
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = decay(exp_avg_sq, weight2) + (weight2 * g) * g
    denom = sqrt_rn(exp_avg_sq) * inv_bias2_sqrt + eps
    ahead = grad_share * g + avg_share * exp_avg
    return decay(p, decay) - lr * div_rn(ahead, denom), (exp_avg, exp_avg_sq)
