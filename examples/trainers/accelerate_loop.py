"""A loop with ``accelerate``: bf16, gradient accumulation, clipping, states saved and loaded.

bash ci/trainers.sh examples/trainers/accelerate_loop.py
"""

import math
import tempfile
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from byte_model import are_equal, form_loss, load_blocks, make_model
from torch import nn
from torch.utils.data import DataLoader

from fused_optim import AdamW

ACCUMULATION, CLIP, EPOCHS = 2, 0.5, 4


def train(
    optimizer: type[torch.optim.Optimizer],
    options: dict[str, Any],
    clip: float | None = None,
    folder: str | None = None,
    resume: bool = False,
    precision: str = "bf16",
) -> tuple[nn.Module, list[float], Any]:
    """Train for 4 epochs of 8 steps.

    Args:
        optimizer: class of the optimizer.
        options: its keyword arguments.
        clip: bound of ``accelerator.clip_grad_norm_``; None to leave clipping to the optimizer.
        folder: folder in which the state is saved after half of the epochs; None to save none.
        resume: True to load that state and go on from it.
        precision: ``mixed_precision`` of the Accelerator.

    Returns:
        The model, its loss in each micro-batch, and the optimizer.
    """
    set_seed(0)
    accelerator = Accelerator(
        gradient_accumulation_steps=ACCUMULATION, mixed_precision=precision, cpu=True
    )
    model = make_model()
    loader = DataLoader(load_blocks(256), batch_size=16, shuffle=True)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer(model.parameters(), **options), loader
    )
    if resume:
        accelerator.load_state(folder)
    losses = []
    for epoch in range(EPOCHS // 2 if resume else 0, EPOCHS):
        for blocks in loader:
            with accelerator.accumulate(model):
                loss = form_loss(model, blocks)
                accelerator.backward(loss)
                if clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        if folder is not None and not resume and epoch + 1 == EPOCHS // 2:
            accelerator.save_state(folder)
    accelerator.free_memory()
    return accelerator.unwrap_model(model), losses, optimizer


def main() -> None:
    """Compare with torch.optim, and resume."""
    options = {"lr": 3e-3, "weight_decay": 0.1}
    # torch.optim needs clip_grad_norm_, ours clips inside the step
    _, expected, _ = train(torch.optim.AdamW, options, clip=CLIP)
    options["max_grad_norm"] = CLIP
    with tempfile.TemporaryDirectory() as folder:
        model, losses, optimizer = train(AdamW, options, folder=folder)
        again, tail, _ = train(AdamW, options, folder=folder, resume=True)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    norm, factor = float(optimizer.optimizer.grad_norm), float(optimizer.optimizer.clip_factor)
    print(f"norm of the last gradient: {norm:.3f}, clipped by {factor:.3f}")
    close = all(math.isclose(p, q, rel_tol=1e-2) for p, q in zip(losses, expected, strict=True))
    print(f"losses equal to those of torch.optim within bf16: {close}")
    same = are_equal(model, again) and tail == losses[len(losses) // 2 :]
    print(f"resumed after epoch {EPOCHS // 2}: the same losses and parameters: {same}")


if __name__ == "__main__":
    main()
