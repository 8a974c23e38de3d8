"""Mixed precision: float16 with a GradScaler on a GPU, bfloat16 on a CPU."""

import torch
from torch import nn

from fused_optim import AdamW

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
inputs, targets = torch.randn(64, 8, device=device), torch.randn(64, 1, device=device)


def train(dtype: torch.dtype) -> tuple[float, float]:
    """Take 30 steps under autocast; return the first and the last loss."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(device)
    optimizer = AdamW(model.parameters(), lr=1e-2, max_grad_norm=1.0)
    # bfloat16 has the range of float32: a disabled scaler multiplies by 1
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            loss = nn.functional.mse_loss(model(inputs).float(), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # unscales and clips inside the optimizer's step
        scaler.update()
        losses.append(loss.item())
    return losses[0], losses[-1]


for dtype in (torch.bfloat16, torch.float16):
    first, last = train(dtype)
    print(f"{dtype}: the loss fell: {last < first}")
