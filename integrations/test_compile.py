"""A compiled training step with the optimizer inside.

With ``backend="aot_eager"`` the model's graph is traced and differentiated as for inductor and runs
the operations of eager, so that the bits of a step can be compared; the example runs inductor.
Fault tried by hand: a bound that is not passed.
"""

import pytest
import torch
from byte_model import make_model
from closeness import assert_as_close, assert_same_run
from compiled_step import CLIP, make_step, train

from fused_optim import AdamW

OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-3}


def run(optimizer, dtype=torch.float32, clip=None, compiled=True, **options):
    model = make_model().to(dtype)
    optimizer = optimizer(model.parameters(), **OPTIONS, **options)
    step = make_step(model, optimizer, clip)
    torch.compiler.reset()
    train(torch.compile(step, backend="aot_eager") if compiled else step)
    return model, optimizer


def test_same_as_torch():
    exact, _ = run(torch.optim.AdamW, torch.float64, CLIP)
    theirs, _ = run(torch.optim.AdamW, clip=CLIP)
    ours, optimizer = run(AdamW, max_grad_norm=CLIP)
    assert_as_close(ours, theirs, exact)
    assert float(optimizer.grad_norm) > CLIP  # the norm before clipping


@pytest.mark.parametrize("formats", [{}, {"weights": "split", "states": "int8", "ema_decay": 0.9}])
def test_same_bits_as_eager(formats):
    dtype = torch.bfloat16 if formats else torch.float32
    runs = [run(AdamW, dtype, None, c, max_grad_norm=CLIP, **formats)[1] for c in (True, False)]
    assert_same_run(*runs)
