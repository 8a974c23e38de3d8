"""SparseAdam: refusals, conversion to and from torch, memory; its steps are in test_sparse.py.

Guards: another message than torch's, a count that torch cannot go on with.
"""

import pytest
import torch
from helpers.models import parameters, values
from sparse_gradients import assert_refused, message_of_torch, sparse_gradient
from torch import nn

import fused_optim

# torch's own optimizers make sparse tensors without saying whether to check them
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
ROWS, COLUMNS = 40, 6


def test_sparse_adam_refuses_as_torch_does():
    def message(cls, *params, **options):
        with pytest.raises(ValueError, match=r"Sparse|Complex|Invalid") as error:
            cls(params, **options)
        return str(error.value)

    dense, sparse = torch.ones(3, requires_grad=True), torch.eye(3).to_sparse().requires_grad_()
    wide = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    pair = fused_optim.SparseAdam, torch.optim.SparseAdam
    first = {"params": [torch.ones(2, requires_grad=True)]}
    for given in (
        (dense, sparse, sparse.detach().requires_grad_()),
        (dense, wide),
        (first, {"params": [dense, sparse]}),
        (first, {"params": [dense, wide]}),
    ):
        mine, other = (message(cls, *given) for cls in pair)
        assert mine == other
    for options in ({"lr": 0.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -1.0)}):
        mine, other = (message(cls, dense, **options) for cls in pair)
        assert mine.startswith(other)
    dense.grad = torch.ones(3)
    words = message_of_torch("SparseAdam", {}, dense.grad)
    assert_refused(fused_optim.SparseAdam([dense]), dense, f"^{words}: the gradient of .* is dense")


def test_sparse_adam_to_and_from_torch():
    """Beside torch all the way, through both conversions and a checkpoint."""
    params = parameters(values([(ROWS, COLUMNS)] * 2, torch.float64)[:1] * 2)
    optimizers = [fused_optim.SparseAdam(params[:1], 0.1), torch.optim.SparseAdam(params[1:], 0.1)]

    def step(*seeds):
        for seed in seeds:
            for optimizer, param in zip(optimizers, params, strict=True):
                param.grad = sparse_gradient(param, seed)
                optimizer.step()
        torch.testing.assert_close(*(param.detach() for param in params))

    step(0, 1)
    assert optimizers[0].defaults.keys() - fused_optim.options.GROUP_DEFAULTS.keys() == (
        optimizers[1].defaults.keys()
    )
    optimizers[0], optimizers[1] = optimizers[0].to_torch(), fused_optim.from_torch(optimizers[1])
    assert type(optimizers[0]) is torch.optim.SparseAdam
    assert type(optimizers[1]) is fused_optim.SparseAdam
    step(2, 3)
    loaded = fused_optim.SparseAdam(params[:1])
    loaded.load_state_dict(optimizers[0].state_dict())
    optimizers[0] = loaded
    step(4, 5)


def test_memory_of_sparse_adam(capsys):
    """The step that moves every row, at most."""
    found = fused_optim.memory([nn.Parameter(torch.ones(ROWS, COLUMNS))], fused_optim.SparseAdam)
    assert found.states == 8 * ROWS * COLUMNS + 4
    assert found.moved == 28 * ROWS * COLUMNS
    assert "moved" in capsys.readouterr().out
