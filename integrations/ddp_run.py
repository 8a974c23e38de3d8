"""Two processes of test_ddp.py: trained parameters of each rank, saved to the folder argv[1]."""

import sys

import torch
import torch.distributed as dist
from byte_model import make_model
from ddp import CLIP, train
from torch.nn.parallel import DistributedDataParallel

from fused_optim import AdamW

OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-3}

dist.init_process_group("gloo")
exact, theirs, ours = map(
    DistributedDataParallel, (make_model().double(), make_model(), make_model())
)
for model in (exact, theirs):
    train(model, torch.optim.AdamW(model.parameters(), **OPTIONS), CLIP)
optimizer = AdamW(ours.parameters(), **OPTIONS, max_grad_norm=CLIP)
train(ours, optimizer)
trained = [[p.detach() for p in model.parameters()] for model in (ours, theirs, exact)]
torch.save((trained, float(optimizer.grad_norm)), f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
