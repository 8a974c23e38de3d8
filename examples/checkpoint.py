"""Checkpoints: resume a run, load a checkpoint of torch.optim, convert a torch optimizer."""

import copy
import io

import torch
from torch import nn

import fused_optim

torch.manual_seed(0)
inputs, targets = torch.randn(64, 8), torch.randn(64, 1)
start = nn.Linear(8, 1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    """Take ``steps`` steps; return a copy of the weight, [1, 8]."""
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return model.weight.detach().clone()


model = copy.deepcopy(start)
expected = train(model, fused_optim.AdamW(model.parameters()), 10)
for library in (fused_optim, torch.optim):
    model, file = copy.deepcopy(start), io.BytesIO()
    first = library.AdamW(model.parameters())
    train(model, first, 5)
    torch.save(first.state_dict(), file)
    resumed = fused_optim.AdamW(model.parameters())
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    print(f"{library.__name__}: {torch.allclose(train(model, resumed, 5), expected, atol=1e-6)}")

model = copy.deepcopy(start)
theirs = torch.optim.AdamW(model.parameters())
train(model, theirs, 5)
ours = fused_optim.from_torch(theirs)
print(f"from_torch: {torch.allclose(train(model, ours, 5), expected, atol=1e-6)}")
