"""accelerate: bf16, accumulation, clipping once, save_state and load_state.

Faults tried by hand: a bound that is not passed, no weight decay, states or extra bits not loaded.
"""

import accelerate_loop
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate_loop import CLIP
from byte_model import make_model
from closeness import assert_as_close, assert_same_run

from fused_optim import AdamW

OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-3}
OURS = {**OPTIONS, "max_grad_norm": CLIP}


def train(*args, **options):
    """Train in a new state of accelerate, which else keeps the precision of the first run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate_loop.train(*args, **options)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_same_as_torch_and_clips_once(precision, monkeypatch):
    theirs, _, _ = train(torch.optim.AdamW, OPTIONS, CLIP, precision=precision)
    ours, _, optimizer = train(AdamW, OURS, precision=precision)
    assert float(optimizer.optimizer.grad_norm) > CLIP  # the norm before clipping
    assert {float(state["step"]) for state in optimizer.optimizer.state.values()} == {32.0}
    _, _, both = train(AdamW, OURS, CLIP, precision=precision)
    assert float(both.optimizer.grad_norm) < CLIP + 1e-6
    monkeypatch.setattr(accelerate_loop, "make_model", lambda: make_model().double())
    exact, _, _ = train(torch.optim.AdamW, OPTIONS, CLIP, precision="no")
    assert_as_close(ours, theirs, exact)


@pytest.mark.parametrize("formats", [{}, {"weights": "split", "states": "int8", "ema_decay": 0.9}])
def test_resume_is_exact(formats, tmp_path, monkeypatch):
    options, precision = {**OURS, **formats}, "bf16"
    if formats:
        precision = "no"
        monkeypatch.setattr(accelerate_loop, "make_model", lambda: make_model().bfloat16())
    folder = str(tmp_path)
    _, losses, whole = train(AdamW, options, folder=folder, precision=precision)
    _, tail, again = train(AdamW, options, folder=folder, resume=True, precision=precision)
    assert tail == losses[len(losses) // 2 :]
    assert_same_run(again.optimizer, whole.optimizer)
