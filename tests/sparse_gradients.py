"""Sparse gradients for tests, and the refusal of one."""

import pytest
import torch
from torch import nn


def sparse_gradient(param, seed, sparse_dim=1, scale=1.0):
    """Return a sparse gradient with duplicate indices, which leaves most rows out."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(param.shape[:sparse_dim])
    indices = (torch.rand(sparse_dim, 7, generator=generator) * sizes[:, None] / 2).long()
    indices = torch.cat([indices, indices[:, :2]], dim=1)
    shape = (indices.shape[1], *param.shape[sparse_dim:])
    given = torch.randn(shape, generator=generator).to(param.dtype) * scale
    return torch.sparse_coo_tensor(indices, given, param.shape, check_invariants=True)


def assert_refused(optimizer, param, message):
    """Assert that a step raises RuntimeError with this message, and changes nothing."""
    before, state = param.detach().clone(), dict(optimizer.state[param])
    copies = {key: value.clone() for key, value in state.items()}
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert torch.equal(param, before)
    assert optimizer.state[param].keys() == copies.keys()
    assert all(torch.equal(optimizer.state[param][key], copies[key]) for key in copies)


def message_of_torch(name, options, grad):
    """Return the message of the RuntimeError that torch's optimizer raises for a gradient."""
    param = nn.Parameter(torch.ones(grad.shape))
    param.grad = grad
    with pytest.raises(RuntimeError) as error:
        getattr(torch.optim, name)([param], **options).step()
    return str(error.value)
