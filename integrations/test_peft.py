"""peft: LoRA adapters on int8 weights of torchao, which stay as they are.

Faults tried by hand: a bound that is not passed, no weight decay, states that are not loaded.
"""

import torch
from closeness import assert_as_close, assert_same_bits
from peft import PeftModel
from peft_lora import CLIP, list_codes, make_base, make_lora, train
from torch import nn
from torchao.quantization import Int8Tensor

from fused_optim import AdamW

OPTIONS = {"lr": 1e-2, "eps": 1e-3}


def list_adapters(model):
    return [param for param in model.parameters() if param.requires_grad]


def make_exact():
    """Return the adapters in float64, on a base with the values of the int8 weights."""
    model = make_lora()
    for module in model.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if isinstance(weight, Int8Tensor):
            module.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
    return model.double()


def test_same_as_torch_and_frozen_bits():
    exact, theirs, ours = make_exact(), make_lora(), make_lora()
    before = list_codes(ours)
    for model in (exact, theirs):
        train(model, torch.optim.AdamW(model.parameters(), **OPTIONS), CLIP)
    optimizer = AdamW(ours.parameters(), **OPTIONS, max_grad_norm=CLIP)
    train(ours, optimizer)
    assert_as_close(*map(list_adapters, (ours, theirs, exact)))
    assert float(optimizer.grad_norm) > CLIP  # the norm before clipping
    assert set(optimizer.state) == set(list_adapters(ours))
    after = list_codes(ours)
    assert sum(part.dtype == torch.int8 for part in after.values()) == 15
    for name, part in before.items():
        assert_same_bits(name, after[name], part)


def test_resume_is_exact(tmp_path):
    whole = make_lora()
    optimizer = AdamW(whole.parameters(), **OPTIONS, max_grad_norm=CLIP)
    train(whole, optimizer)
    whole.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    losses = train(whole, optimizer)
    again = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True)
    resumed = AdamW(again.parameters(), **OPTIONS, max_grad_norm=CLIP)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert train(again, resumed) == losses
    for ours, theirs in zip(list_adapters(again), list_adapters(whole), strict=True):
        assert_same_bits("adapter", ours.detach(), theirs.detach())
