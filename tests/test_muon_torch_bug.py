"""torch.optim.Muon's error in bf16 without Nesterov momentum, which ours does not have.

It divides the momentum itself by its norm, in place: https://github.com/pytorch/pytorch/issues/190597.
docs/contract.md lists it; when torch is corrected, the first test fails and the entry goes.
"""

import torch
from helpers.versions import NEEDS_TORCH_MUON
from torch.nn import Parameter

from fused_optim import Muon

GRAD = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def take_steps(optimizer_class, dtype, **options):
    """Return the momentum after two steps with one gradient."""
    param = Parameter(torch.ones(6, 4, dtype=dtype))
    optimizer = optimizer_class([param], nesterov=False, **options)
    for _ in range(2):
        param.grad = GRAD.to(dtype)
        optimizer.step()
    return optimizer.state[param]["momentum_buffer"].float()


@NEEDS_TORCH_MUON
def test_torch_normalizes_its_momentum_in_bf16():
    expected = (1 - 0.95**2) * GRAD
    torch.testing.assert_close(take_steps(torch.optim.Muon, torch.float32), expected)
    wrong = take_steps(torch.optim.Muon, torch.bfloat16)
    torch.testing.assert_close(wrong.norm(), torch.tensor(1.0), atol=0.02, rtol=0)
    assert abs(expected.norm() - 1) > 0.4


def test_ours_keeps_it():
    expected = (1 - 0.95**2) * GRAD
    for dtype in (torch.float32, torch.bfloat16):
        tolerance = {} if dtype is torch.float32 else {"atol": 0.002, "rtol": 0.02}
        for backend in ("reference", "auto"):
            momentum = take_steps(Muon, dtype, backend=backend)
            torch.testing.assert_close(momentum, expected, **tolerance)
