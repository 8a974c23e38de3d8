"""transformers.Trainer: both ways to give it an optimizer, clipping once, resuming.

Faults tried by hand: a bound that is not passed, states or extra bits of weights not loaded.
"""

import pytest
import torch
from closeness import assert_as_close, assert_far, assert_same_run
from hf_trainer import list_losses, make_model, make_trainer

from fused_optim import AdamW

BOUND = 1.5  # greater than the Trainer's default of 1.0, and less than the norms of the first steps
OPTIONS = {"lr": 3e-3, "eps": 1e-3}


def choose(way, model, optimizer, options):
    if way == "optimizers":
        return {"optimizers": (optimizer(model.parameters(), weight_decay=0.1, **options), None)}
    return {"optimizer_cls_and_kwargs": (optimizer, dict(options))}


def train(folder, way, optimizer, options, model=None, checkpoint=None, **args):
    model = model or make_model()
    trainer = make_trainer(folder, model, choose(way, model, optimizer, options), **args)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


@pytest.mark.parametrize("way", ["optimizers", "optimizer_cls_and_kwargs"])
def test_same_as_torch_and_clips_once(way, tmp_path):
    exact, theirs = (
        train(tmp_path, way, torch.optim.AdamW, OPTIONS, model, max_grad_norm=BOUND)
        for model in (make_model().double(), make_model())
    )
    options = {**OPTIONS, "max_grad_norm": BOUND}
    ours = train(tmp_path, way, AdamW, options, max_grad_norm=0.0)
    assert_as_close(ours.model, theirs.model, exact.model)
    # the norm that the step has seen is that before clipping, as the Trainer has logged it
    logged = [entry["grad_norm"] for entry in theirs.state.log_history if "grad_norm" in entry]
    assert max(logged) > BOUND
    assert float(ours.optimizer.optimizer.grad_norm) == pytest.approx(logged[-1], rel=1e-3)
    # what the page warns of: the default clips first, to 1.0
    both = train(tmp_path, way, AdamW, options)
    assert float(both.optimizer.optimizer.grad_norm) < 1.0 + 1e-6
    assert_far(both.model, theirs.model)


@pytest.mark.parametrize("formats", [{}, {"weights": "split", "states": "int8", "ema_decay": 0.9}])
def test_resume_is_exact(formats, tmp_path):
    options = {**OPTIONS, **formats, "max_grad_norm": BOUND}
    make = make_model if not formats else lambda: make_model().bfloat16()
    way = "optimizer_cls_and_kwargs"
    arguments = {"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}
    whole = train(tmp_path, way, AdamW, options, make(), **arguments)
    checkpoint = str(tmp_path / "checkpoint-10")
    again = train(tmp_path / "again", way, AdamW, options, make(), checkpoint, **arguments)
    assert len(list_losses(whole)) == 20
    assert list_losses(again) == list_losses(whole)
    assert_same_run(again.optimizer.optimizer, whole.optimizer.optimizer)


def test_resume_from_a_run_of_torch(tmp_path):
    """Guard against a bound or a default that the checkpoint of torch.optim overwrites."""
    way, clip = "optimizer_cls_and_kwargs", {"max_grad_norm": BOUND}
    exact = train(
        tmp_path / "exact", way, torch.optim.AdamW, OPTIONS, make_model().double(), **clip
    )
    theirs = train(tmp_path, way, torch.optim.AdamW, OPTIONS, **clip)
    checkpoint = str(tmp_path / "checkpoint-10")
    options = {**OPTIONS, **clip}
    ours = train(tmp_path / "ours", way, AdamW, options, None, checkpoint, max_grad_norm=0.0)
    assert_as_close(ours.model, theirs.model, exact.model)
