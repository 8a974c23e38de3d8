"""DistributedDataParallel: ``torchrun --nproc-per-node 2 examples/ddp.py``."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_optim import AdamW

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
inputs, targets = torch.randn(64, 8), torch.randn(64, 1)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
alone = copy.deepcopy(model)


def train(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Take 10 clipped steps on one batch."""
    optimizer = AdamW(model.parameters(), lr=1e-2, max_grad_norm=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()


train(DistributedDataParallel(model), inputs[rank::size], targets[rank::size])
train(alone, inputs, targets)
pairs = zip(model.parameters(), alone.parameters(), strict=True)
difference = torch.tensor(max((p - q).abs().max().item() for p, q in pairs))
dist.all_reduce(difference, dist.ReduceOp.MAX)
if rank == 0:
    print(f"{size} processes equal one within 1e-5: {difference.item() < 1e-5}", flush=True)
dist.barrier()  # no process ends before the result is printed
dist.destroy_process_group()
