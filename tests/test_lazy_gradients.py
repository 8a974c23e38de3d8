"""Gradients that torch negates or conjugates lazily, whose memory a kernel reads.

Faults tried by hand: without the copies that resolve them, and without the question for the
negative bit in csrc/snapshot.c and in fused_optim/optimizers/guards.py.
"""

import pytest
import torch
from helpers.models import BACKENDS
from torch.nn import Parameter

from fused_optim import AdamW
from fused_optim.testing.closeness import assert_same_bits


def imaginary(shape):
    """Return a gradient as autograd forms it for the imaginary part of a conjugated number."""
    gradient = torch.complex(torch.zeros(shape), torch.full(shape, 0.5)).conj().imag
    return gradient, gradient.is_neg()


def negative(shape):
    gradient = torch._neg_view(torch.full(shape, 0.5))
    return gradient, gradient.is_neg()


def conjugate(shape):
    gradient = torch.full(shape, 0.25 + 0.5j).conj()
    return gradient, gradient.is_conj()


def real(tensor):
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


CASES = {
    "imaginary": (imaginary, torch.float32, ()),
    "imaginary, one": (imaginary, torch.float32, (1,)),
    "imaginary, strided": (imaginary, torch.float32, (2, 3)),
    "negative": (negative, torch.float32, (5,)),
    "conjugate": (conjugate, torch.complex64, (5,)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_what_it_reads_as(case, backend):
    """Guard against reading the memory of lazy gradients, in full and cached steps."""
    make, dtype, shape = CASES[case]
    params = [Parameter(torch.ones(shape, dtype=dtype)) for _ in range(2)]
    lazy, plain = (AdamW([p], 0.1, max_grad_norm=0.5, backend=backend) for p in params)
    for is_lazy in (False, True, True, False, False, True):
        gradient, is_resolved_on_reading = make(shape)
        assert is_resolved_on_reading
        values = gradient.clone()
        params[0].grad = gradient if is_lazy else values.clone()
        params[1].grad = values
        lazy.step()
        plain.step()
        assert_same_bits("parameter", *map(real, params))
        assert torch.equal(params[0].grad, values)
    for name, state in plain.state[params[1]].items():
        assert_same_bits(name, real(lazy.state[params[0]][name]), real(state))
