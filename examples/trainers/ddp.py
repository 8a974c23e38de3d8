"""DistributedDataParallel on two processes, with checkpoints.

bash ci/trainers.sh -m torch.distributed.run --nproc-per-node 2 examples/trainers/ddp.py
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from byte_model import are_close, are_equal, form_loss, load_blocks, make_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_optim import AdamW

STEPS, CLIP = 20, 0.5


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float | None = None,
    start: int = 0,
    file: Path | None = None,
) -> list[float]:
    """Train on this rank's share of each batch; return the losses of the share.

    Args:
        model: model to train, wrapped or not; if not, on whole batches.
        optimizer: its optimizer.
        clip: bound of ``clip_grad_norm_``; None to leave clipping to the optimizer.
        start: step to begin with; if not 0, ``file`` is loaded.
        file: checkpoint, which rank 0 saves after half of the steps.
    """
    wrapped = isinstance(model, DistributedDataParallel)
    rank, size = (dist.get_rank(), dist.get_world_size()) if wrapped else (0, 1)
    if start:
        weights, states = torch.load(file)
        model.load_state_dict(weights)
        optimizer.load_state_dict(states)
    losses = []
    for step, blocks in enumerate(load_blocks(STEPS * 32).split(32)[start:], start):
        if file is not None and step == STEPS // 2 and not start and rank == 0:
            torch.save((model.state_dict(), optimizer.state_dict()), file)
        optimizer.zero_grad()
        loss = form_loss(model, blocks[rank::size])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Compare with torch.optim and with one process, and resume."""
    options = {"lr": 3e-3, "weight_decay": 0.1}
    theirs, ours, resumed = (DistributedDataParallel(make_model()) for _ in range(3))
    alone = make_model()
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options), CLIP)
    options["max_grad_norm"] = CLIP  # every rank has all gradients: no process group is needed
    train(alone, AdamW(alone.parameters(), **options))
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    file = Path(folder[0], "half.pt")
    losses = train(ours, AdamW(ours.parameters(), **options), file=file)
    dist.barrier()  # rank 0 has written the file
    optimizer = AdamW(resumed.parameters(), **options)
    tail = train(resumed, optimizer, start=STEPS // 2, file=file)

    checks = {
        "equal to torch.optim within 1e-4": are_close(ours.parameters(), theirs.parameters(), 1e-4),
        "equal to one process within 1e-4": are_close(ours.parameters(), alone.parameters(), 1e-4),
        "resumed: the same": are_equal(ours, resumed) and tail == losses[STEPS // 2 :],
    }
    results = [None] * dist.get_world_size()
    dist.all_gather_object(results, list(checks.values()))
    if dist.get_rank() == 0:
        file.unlink()
        file.parent.rmdir()
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} on {len(results)} processes")
        for name, values in zip(checks, zip(*results, strict=True), strict=True):
            print(f"{name}: {all(values)}", flush=True)
    dist.barrier()  # no process ends before the results are printed


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
