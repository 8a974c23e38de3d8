"""Gradient descent: the same page as fused_optim/rules/sgd.py."""

import triton
import triton.language as tl


@triton.jit
def sgd_scalars(hparams, step):
    """Scalars of :func:`sgd`."""
    lr, _momentum, _dampening = hparams
    return (lr,)


@triton.jit
def sgd(p, g, state, s):
    """Gradient descent without momentum."""
    (lr,) = s
    return p - lr * g, state


@triton.jit
def sgd_momentum_scalars(hparams, step):
    """Scalars of :func:`sgd_momentum` and :func:`sgd_nesterov`, without dampening."""
    lr, momentum, _dampening = hparams
    return lr, momentum, momentum * 0.0 + 1.0


@triton.jit
def sgd_dampened_scalars(hparams, step):
    """Scalars of :func:`sgd_momentum`: the first gradient enters the buffer undampened."""
    lr, momentum, dampening = hparams
    return lr, momentum, tl.where(step == 1, 1.0, 1.0 - dampening)


@triton.jit
def sgd_momentum(p, g, state, s):
    """Heavy-ball momentum as torch.optim.SGD defines it: the rate stays outside the buffer."""
    (momentum_buffer,) = state
    lr, momentum, weight = s
    momentum_buffer = momentum * momentum_buffer + weight * g
    return p - lr * momentum_buffer, (momentum_buffer,)


@triton.jit
def sgd_nesterov(p, g, state, s):
    """Nesterov momentum, Sutskever et al. 2013 (https://proceedings.mlr.press/v28/sutskever13)."""
    (momentum_buffer,) = state
    lr, momentum, weight = s
    momentum_buffer = momentum * momentum_buffer + weight * g
    return p - lr * (g + momentum * momentum_buffer), (momentum_buffer,)
