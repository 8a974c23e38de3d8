"""torchtitan: its container of optimizers and of schedules, with checkpoints by DCP.

bash ci/trainers.sh examples/trainers/torchtitan_container.py
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from byte_model import are_close, are_equal, form_loss, load_blocks, make_model
from torch import nn
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)
from torchtitan.distributed.utils import clip_grad_norm_

import fused_optim

STEPS, CLIP = 32, 0.5


class FusedOptimizers(OptimizersContainer):
    """torchtitan's container, which takes the classes of fused_optim by name."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """The value of ``TrainerConfig.optimizer``."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., torch.optim.Optimizer]:
        return getattr(fused_optim, name)


def configure(container: type[OptimizersContainer], **options: Any) -> OptimizersContainer.Config:
    """Return a configuration with weight decay for matrices alone; ``options`` are for all."""
    groups = [
        ParamGroupConfig(
            pattern=pattern,
            optimizer_name="AdamW",
            optimizer_kwargs={"lr": 3e-3, "weight_decay": decay},
        )
        for pattern, decay in ((r"bias$", 0.0), (r".*", 0.1))
    ]
    return container.Config(
        param_groups=groups, optimizer_factory_kwargs_by_name={"AdamW": options}
    )


def train(
    model: nn.Module,
    config: OptimizersContainer.Config,
    max_norm: float,
    start: int = 0,
    stop: int = STEPS,
    folder: str = "",
) -> tuple[list[float], Any]:
    """Train as torchtitan's trainer does, on one process; return the losses and the container.

    Args:
        model: model to train.
        config: configuration of the optimizers.
        max_norm: bound of torchtitan's own clipping, ``training.max_norm``.
        start: step to begin with; if not 0, ``folder`` is loaded.
        stop: step to end before; if not the last, ``folder`` is saved.
        folder: the checkpoint.
    """
    optimizers = config.build(model_parts=[model])
    schedule = LRSchedulersContainer.Config(warmup_steps=4)
    schedulers = schedule.build(optimizers=optimizers, training_steps=STEPS)
    states = {"model": model, "optimizer": optimizers, "lr_scheduler": schedulers}
    if start:
        dcp.load(states, checkpoint_id=folder, no_dist=True)
    losses = []
    for blocks in load_blocks(STEPS * 16).split(16)[start:stop]:
        optimizers.zero_grad()
        loss = form_loss(model, blocks)
        loss.backward()
        clip_grad_norm_(model.parameters(), max_norm)
        optimizers.step()
        schedulers.step()
        losses.append(loss.item())
    if stop < STEPS:
        dcp.save(states, checkpoint_id=folder, no_dist=True)
    return losses, optimizers


def main() -> None:
    """Compare with torch.optim, and resume."""
    theirs, ours, resumed = make_model(), make_model(), make_model()
    train(theirs, configure(OptimizersContainer), CLIP)

    # ours clips inside the step: training.max_norm = math.inf only computes the norm for the log
    config = configure(FusedOptimizers, max_grad_norm=CLIP)
    losses, _ = train(ours, config, math.inf)
    with tempfile.TemporaryDirectory() as folder:
        train(make_model(), config, math.inf, stop=STEPS // 2, folder=folder)
        tail, _ = train(resumed, config, math.inf, start=STEPS // 2, folder=folder)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    close = are_close(ours.parameters(), theirs.parameters(), 1e-4)
    print(f"equal to torch.optim within 1e-4: {close}")
    same = are_equal(ours, resumed) and tail == losses[STEPS // 2 :]
    print(f"resumed at step {STEPS // 2}: the same losses and parameters: {same}")


if __name__ == "__main__":
    main()
