"""Lightning: ``configure_optimizers``, bf16-mixed, clipping, and ``fit(ckpt_path=...)``.

bash ci/trainers.sh examples/trainers/lightning_fit.py
"""

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch
from byte_model import are_equal, form_loss, load_blocks, make_model
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from fused_optim import AdamW

STEPS = 32


class Training(lightning.LightningModule):
    """Training of the byte model; the optimizer is given by a function of its parameters."""

    def __init__(self, make_optimizer: Callable[[Iterator[Tensor]], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model = make_model()
        self.make_optimizer = make_optimizer
        self.losses: list[float] = []

    def training_step(self, blocks: Tensor) -> Tensor:
        """Return the loss of a batch."""
        loss = form_loss(self.model, blocks)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer, and a schedule."""
        optimizer = self.make_optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def fit(module: Training, folder: str, ckpt_path: str | None = None, **options: Any) -> Any:
    """Train for 2 epochs of 16 batches, with a checkpoint after each; return the Trainer.

    Args:
        module: module to train.
        folder: folder of the checkpoints: epoch=0.ckpt, epoch=1.ckpt.
        ckpt_path: checkpoint to go on from.
        options: further options of the Trainer.
    """
    checkpoints = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[checkpoints],
        **{"precision": "bf16-mixed", **options},
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(load_blocks(256), batch_size=16), ckpt_path=ckpt_path)
    return trainer


def main() -> None:
    """Compare with torch.optim, and resume."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # on workers, and of torch's to Lightning

    def make_theirs(params: Iterator[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=3e-3, weight_decay=0.1)

    def make_ours(params: Iterator[Tensor]) -> torch.optim.Optimizer:
        # clips inside the step, so that the Trainer gets no gradient_clip_val
        return AdamW(params, lr=3e-3, weight_decay=0.1, max_grad_norm=0.5)

    theirs, ours, resumed = Training(make_theirs), Training(make_ours), Training(make_ours)
    with tempfile.TemporaryDirectory() as folder:
        fit(theirs, f"{folder}/theirs", gradient_clip_val=0.5)
        fit(ours, f"{folder}/ours")
        fit(resumed, f"{folder}/resumed", ckpt_path=f"{folder}/ours/epoch=0.ckpt")
    losses = ours.losses
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    pairs = zip(losses, theirs.losses, strict=True)
    close = all(math.isclose(p, q, rel_tol=1e-2) for p, q in pairs)
    print(f"losses equal to those of torch.optim within bf16: {close}")
    same = are_equal(ours, resumed) and resumed.losses == losses[STEPS // 2 :]
    print(f"resumed after the first epoch: the same losses and parameters: {same}")


if __name__ == "__main__":
    main()
