"""Gradient descent: the Triton counterpart of fused_optim/rules/sgd.py."""

import triton
import triton.language as tl

from fused_optim.kernels.rules.signatures import MomentumScalars, SGDHparams, SGDScalars


@triton.jit
def sgd_scalars(hparams, step):
    """Return the scalars of :func:`sgd`."""
    hparams = SGDHparams(*hparams)
    return SGDScalars(
        lr=hparams.lr,
    )


@triton.jit
def sgd(p, g, state, s):
    """Gradient descent without momentum."""
    s = SGDScalars(*s)
    return p - s.lr * g, state


@triton.jit
def sgd_momentum_scalars(hparams, step):
    """Return the scalars of :func:`sgd_momentum` and :func:`sgd_nesterov`, without dampening."""
    hparams = SGDHparams(*hparams)
    return MomentumScalars(
        lr=hparams.lr, momentum=hparams.momentum, weight=hparams.momentum * 0.0 + 1.0
    )


@triton.jit
def sgd_dampened_scalars(hparams, step):
    """Return the scalars of :func:`sgd_momentum`: the first gradient is not dampened."""
    hparams = SGDHparams(*hparams)
    return MomentumScalars(
        lr=hparams.lr,
        momentum=hparams.momentum,
        weight=tl.where(step == 1, 1.0, 1.0 - hparams.dampening),
    )


@triton.jit
def sgd_momentum(p, g, state, s):
    """Heavy-ball momentum as torch.optim.SGD defines it: the rate stays outside the buffer."""
    (momentum_buffer,) = state
    s = MomentumScalars(*s)
    momentum_buffer = s.momentum * momentum_buffer + s.weight * g
    return p - s.lr * momentum_buffer, (momentum_buffer,)


@triton.jit
def sgd_nesterov(p, g, state, s):
    """Nesterov momentum, Sutskever et al. 2013 (https://proceedings.mlr.press/v28/sutskever13)."""
    (momentum_buffer,) = state
    s = MomentumScalars(*s)
    momentum_buffer = s.momentum * momentum_buffer + s.weight * g
    return p - s.lr * (g + s.momentum * momentum_buffer), (momentum_buffer,)
