"""Replacement of torch.optim.AdamW and ``clip_grad_norm_``: ``python examples/quickstart.py``."""

import copy

import torch
from torch import nn

from fused_optim import AdamW

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
other = copy.deepcopy(model)
inputs, targets = torch.randn(64, 8), torch.randn(64, 1)

ours = AdamW(model.parameters(), lr=1e-2, max_grad_norm=0.1)
theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
for _ in range(20):
    ours.zero_grad()
    nn.functional.mse_loss(model(inputs), targets).backward()
    ours.step()

    theirs.zero_grad()
    nn.functional.mse_loss(other(inputs), targets).backward()
    nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    theirs.step()

pairs = zip(model.parameters(), other.parameters(), strict=True)
difference = max((p - q).abs().max().item() for p, q in pairs)
print(f"backend: {ours.backend_used}")
norm, factor = float(ours.grad_norm), float(ours.clip_factor)
print(f"norm of the last gradient: {norm:.4f}, factor {factor:.4f}")
print(f"equal to torch within 1e-5: {difference < 1e-5}")
