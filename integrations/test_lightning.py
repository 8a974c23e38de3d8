"""Lightning: configure_optimizers, bf16-mixed, clipping once, resuming.

Faults tried by hand: a bound that is not passed, no weight decay, states or extra bits not loaded.
"""

import pytest
import torch
from closeness import assert_as_close, assert_same_run
from lightning_fit import Training, fit

from fused_optim import AdamW

CLIP = 0.5
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-3}


class Recording(Training):
    """A training that reads the results of its optimizer, as a log would."""

    def __init__(self, optimizer, dtype=torch.float32, **options):
        super().__init__(lambda params: optimizer(params, **OPTIONS, **options))
        self.model.to(dtype)
        self.norms = []

    def on_before_zero_grad(self, optimizer):
        norm = getattr(self.optimizers(), "grad_norm", None)
        if norm is not None:
            self.norms.append(float(norm))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_same_as_torch_and_clips_once(precision, tmp_path):
    theirs, exact = Recording(torch.optim.AdamW), Recording(torch.optim.AdamW, torch.float64)
    fit(theirs, tmp_path, precision=precision, gradient_clip_val=CLIP)
    fit(exact, tmp_path, precision="64-true", gradient_clip_val=CLIP)
    ours = Recording(AdamW, max_grad_norm=CLIP)
    fit(ours, tmp_path, precision=precision)
    assert_as_close(ours, theirs, exact)
    assert len(ours.norms) >= 31
    assert min(ours.norms) > CLIP  # the norm before clipping
    # or Lightning clips, and the step does not
    clipped = Recording(AdamW)
    fit(clipped, tmp_path, precision=precision, gradient_clip_val=CLIP)
    assert_as_close(clipped, theirs, exact)


def test_clipping_twice(tmp_path):
    """Lightning refuses it with mixed precision; else it clips before the step sees the norm."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Recording(AdamW, max_grad_norm=CLIP), tmp_path, gradient_clip_val=CLIP)
    for optimizer in (AdamW, torch.optim.AdamW):
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            fit(Recording(optimizer, fused=True), tmp_path, gradient_clip_val=CLIP)
    both = Recording(AdamW, max_grad_norm=CLIP)
    fit(both, tmp_path, precision="32-true", gradient_clip_val=CLIP)
    assert max(both.norms) < CLIP + 1e-6


@pytest.mark.parametrize("formats", [{}, {"weights": "split", "states": "int8", "ema_decay": 0.9}])
def test_resume_is_exact(formats, tmp_path):
    dtype, precision = (torch.bfloat16, "bf16-true") if formats else (torch.float32, "bf16-mixed")
    whole, again = (Recording(AdamW, dtype, max_grad_norm=CLIP, **formats) for _ in range(2))
    first = fit(whole, tmp_path / "whole", precision=precision)
    checkpoint = str(tmp_path / "whole" / "epoch=0.ckpt")
    second = fit(again, tmp_path / "again", checkpoint, precision=precision)
    assert again.losses == whole.losses[16:]
    assert again.norms[1:] == whole.norms[-len(again.norms) + 1 :]
    assert_same_run(second.optimizers[0], first.optimizers[0])
