"""Hugging Face ``transformers.Trainer``: a small GPT-2, with torch.optim.AdamW and with ours.

bash ci/trainers.sh examples/trainers/hf_trainer.py
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from byte_model import are_close, are_equal, load_blocks
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

from fused_optim import AdamW

STEPS = 20


def make_model() -> GPT2LMHeadModel:
    """Return a GPT-2 with 2 layers for bytes, the same each time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens))


def make_trainer(folder: str | Path, model: Any, optimizer: dict[str, Any], **args: Any) -> Trainer:
    """Return a Trainer of 20 steps.

    Args:
        folder: folder of the checkpoints, one every 10 steps.
        model: model to train.
        optimizer: keyword arguments of Trainer that choose the optimizer.
        args: further arguments of TrainingArguments.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=STEPS,
        logging_steps=1,
        save_steps=STEPS // 2,
        warmup_steps=4,
        weight_decay=0.1,  # of matrices: the Trainer makes a group of them
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **args,
    )
    data = [{"input_ids": block, "labels": block} for block in load_blocks(128, 64)]
    trainer = Trainer(model, arguments, train_dataset=data, **optimizer)
    trainer.remove_callback(PrinterCallback)  # the losses are printed below, and once
    return trainer


def list_losses(trainer: Trainer) -> list[float]:
    """Return the loss of each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    """Compare with torch.optim, and resume."""
    disable_progress_bar()
    options = {"lr": 3e-3}
    theirs, ours, resumed = make_model(), make_model(), make_model()
    with tempfile.TemporaryDirectory() as folder:
        # the Trainer clips for torch.optim, by its default of 1.0
        optimizer = {"optimizer_cls_and_kwargs": (torch.optim.AdamW, options)}
        make_trainer(f"{folder}/theirs", theirs, optimizer, max_grad_norm=1.0).train()

        # ours clips inside the step, so the Trainer must not: max_grad_norm=0.0
        optimizer = {"optimizer_cls_and_kwargs": (AdamW, {**options, "max_grad_norm": 1.0})}
        whole = make_trainer(f"{folder}/ours", ours, optimizer, max_grad_norm=0.0)
        whole.train()

        again = make_trainer(f"{folder}/resumed", resumed, optimizer, max_grad_norm=0.0)
        again.train(resume_from_checkpoint=f"{folder}/ours/checkpoint-{STEPS // 2}")
    losses = list_losses(whole)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    close = are_close(ours.parameters(), theirs.parameters(), 1e-4)
    print(f"equal to torch.optim within 1e-4: {close}")
    same = are_equal(ours, resumed) and list_losses(again) == losses
    print(f"resumed at step {STEPS // 2}: the same losses and parameters: {same}")


if __name__ == "__main__":
    main()
