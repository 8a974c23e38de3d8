"""One training of the small GPT, sharded over all processes, and the same without sharding."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LambdaLR

import fused_optim
from examples.gpt.choices import SETTINGS
from examples.gpt.model import GPT
from examples.gpt.training import MAX_GRAD_NORM, Task, groups, start
from examples.gpt.verdict import allowances, differences


def shard(model: GPT, mesh: DeviceMesh) -> GPT:
    """Shard the parameters of each block over ``mesh``, then the rest; they become DTensors."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


class ShardedTraining:
    """Model, optimizer and schedule on one of the processes, and the loss curve so far.

    ``torch.distributed.checkpoint`` saves and loads it through ``state_dict`` and
    ``load_state_dict``.

    Attributes:
        step: number of steps taken.
        losses: mean loss over the global batch before each step, float64 [steps]; 0 from ``step``.
    """

    def __init__(self, task: Task, mesh: DeviceMesh) -> None:
        """Create the same weights in every process, then the shards and their optimizer."""
        self.task, self.mesh = task, mesh
        torch.manual_seed(task.seed)
        self.model = shard(GPT(task.shape).to(task.device), mesh)
        options = dict(SETTINGS["AdamW"])
        groups_of_model = groups(self.model, options.pop("weight_decay"))
        self.optimizer = fused_optim.AdamW(groups_of_model, max_grad_norm=MAX_GRAD_NORM, **options)
        self.scheduler = LambdaLR(self.optimizer, task.learning_rate)
        self.step = 0
        self.losses = torch.zeros(task.steps, dtype=torch.float64)

    def take_step(self) -> None:
        """Train on this process' share of the batch; FSDP averages the gradients."""
        batch = self.task.batch(self.step)[self.mesh.get_local_rank() :: self.mesh.size()]
        self.optimizer.zero_grad()
        loss = self.model.loss(batch)
        loss.backward()
        self.optimizer.step()  # clips by the norm over all processes: no clip_grad_norm_
        self.scheduler.step()
        self.losses[self.step] = average(loss.detach(), self.mesh)
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what continues this training, on any number of processes."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.losses = state["step"], state["losses"]


def average(loss: Tensor, mesh: DeviceMesh) -> float:
    """Return the mean of ``loss`` over the processes."""
    total = loss.double()
    dist.all_reduce(total, group=mesh.get_group())
    return total.item() / mesh.size()


def compare(task: Task, losses: Tensor) -> tuple[float, float]:
    """Train in this process alone with torch.optim.AdamW and ``clip_grad_norm_``.

    Returns:
        The largest difference from ``losses``, and the one that rounding explains at that step, as
        ``examples/gpt/verdict.py`` defines it.
    """
    runs = start(task, torch.optim.AdamW, fused_optim.AdamW, SETTINGS["AdamW"])
    runs.fused.losses = losses.tolist()
    for step in range(task.steps):
        for run in (runs.torch, runs.control):
            run.step(task.batch(step))
    apart, allowed = differences(runs.fused, runs.torch), allowances(runs)
    worst = int((apart / allowed).argmax())
    return float(apart[worst]), float(allowed[worst])
