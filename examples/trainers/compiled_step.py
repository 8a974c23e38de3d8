"""A training step in ``torch.compile``, with the optimizer inside; needs a C++ compiler.

bash ci/trainers.sh examples/trainers/compiled_step.py
"""

import tempfile
from collections.abc import Callable

import torch
from byte_model import are_close, are_equal, form_loss, load_blocks, make_model
from torch import Tensor, nn

from fused_optim import AdamW

STEPS, CLIP = 20, 0.5
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1}


def make_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the step of a training, which takes blocks of bytes and returns the loss.

    Args:
        model: model to train.
        optimizer: its optimizer.
        clip: bound of ``clip_grad_norm_``; None to leave clipping to the optimizer.
    """

    def step(blocks: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = form_loss(model, blocks)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return loss.detach()

    return step


def train(step: Callable[[Tensor], Tensor], start: int = 0, stop: int = STEPS) -> list[float]:
    """Take the steps from ``start`` on, of which only three may compile; return the losses."""
    losses = []
    for i, blocks in enumerate(load_blocks(STEPS * 32).split(32)[start:stop]):
        with torch.compiler.set_stance("fail_on_recompile" if i > 2 else "default"):
            losses.append(step(blocks).item())
    return losses


def main() -> None:
    """Compare with the same step that is not compiled, with torch.optim, and resume."""
    eager, compiled, theirs, resumed = (make_model() for _ in range(4))
    optimizer = torch.optim.AdamW(theirs.parameters(), **OPTIONS)
    train(torch.compile(make_step(theirs, optimizer, CLIP)))

    def make_ours(model: nn.Module) -> AdamW:
        return AdamW(model.parameters(), **OPTIONS, max_grad_norm=CLIP)

    train(make_step(eager, make_ours(eager)))
    optimizer = make_ours(compiled)
    step = torch.compile(make_step(compiled, optimizer))
    losses = train(step, stop=STEPS // 2)
    with tempfile.NamedTemporaryFile() as file:
        torch.save((compiled.state_dict(), optimizer.state_dict()), file.name)
        losses += train(step, start=STEPS // 2)
        weights, states = torch.load(file.name)
    optimizer = make_ours(resumed)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(states)
    tail = train(torch.compile(make_step(resumed, optimizer)), start=STEPS // 2)

    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, compiled once for all steps after the third")
    close = are_close(compiled.parameters(), eager.parameters(), 1e-4)
    print(f"equal to the step that is not compiled within 1e-4: {close}")
    close = are_close(compiled.parameters(), theirs.parameters(), 1e-4)
    print(f"equal to a compiled step of torch.optim within 1e-4: {close}")
    same = are_equal(compiled, resumed) and tail == losses[STEPS // 2 :]
    print(f"resumed at step {STEPS // 2}: the same losses and parameters: {same}")


if __name__ == "__main__":
    main()
