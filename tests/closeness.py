"""The only tolerance policy: no backend may be much worse than rounding makes unavoidable."""

import torch
from torch import Tensor


def assert_as_accurate(name: str, actual: Tensor, peer: Tensor, exact: Tensor) -> None:
    """Bound the worst error of ``actual`` by twice that of ``peer``, plus one rounding.

    Args:
        name: shown in the message.
        actual: the result under test.
        peer: the same step by torch.optim, in the dtype of ``actual``.
        exact: the same step in float64.
    """
    if actual.numel() == 0:
        return
    actual, peer = actual.detach(), peer.detach()
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    rounding = torch.finfo(actual.dtype).eps * exact.abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    peer_error = (peer.double() - exact).abs().max().item()
    budget = 2.0 * (peer_error + rounding)
    assert error <= budget, (
        f"{name}: error {error:.3e}, budget {budget:.3e} (torch {peer_error:.3e})"
    )


def assert_same_bits(name: str, actual: Tensor, expected: Tensor) -> None:
    """``torch.equal``, with NaN equal to NaN and zeros told apart by sign."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} is not {expected.dtype}"
    if actual.itemsize == 1 and actual.is_floating_point():
        actual, expected = actual.view(torch.uint8), expected.view(torch.uint8)  # codes
    same = (actual == expected) & (actual.signbit() == expected.signbit())
    different = ~(same | (actual.isnan() & expected.isnan()))
    count = int(different.sum())
    if count:
        i = different.flatten().nonzero()[0].item()
        pair = actual.flatten()[i].item(), expected.flatten()[i].item()
        raise AssertionError(f"{name}: {count} of {actual.numel()} differ, first at {i}: {pair}")
