"""bf16 weights with the bits of fp32 and states in 8 bits: 6 bytes a parameter instead of 14."""

import torch
from torch import nn

import fused_optim

torch.manual_seed(0)
formats = {
    "master weights, fp32 states": {"weights": "master", "states": "fp32"},
    "split weights, int8 states": {"weights": "split", "states": "int8"},
}
for name, options in formats.items():
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64)).bfloat16()
    inputs = torch.randn(32, 64, dtype=torch.bfloat16)
    optimizer = fused_optim.AdamW(model.parameters(), lr=1e-2, **options)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{name}: the loss fell: {losses[-1] < losses[0]}")
    fused_optim.memory(model, **options)
