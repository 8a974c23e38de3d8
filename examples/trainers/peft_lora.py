"""peft: LoRA adapters on a GPT-2 whose weights are frozen and quantized to int8 by torchao.

bash ci/trainers.sh examples/trainers/peft_lora.py
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from byte_model import are_close, load_blocks
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM

from fused_optim import AdamW

STEPS, CLIP = 30, 0.05


def make_base() -> Any:
    """Return a Llama with 2 layers for bytes, its linear layers in int8, the same each time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **layers))
    quantize_(model, Int8WeightOnlyConfig())
    return model


def make_lora() -> Any:
    """Return the base with new adapters of rank 8."""
    base = make_base()
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    return get_peft_model(base, LoraConfig(r=8, target_modules=targets))


def train(model: Any, optimizer: torch.optim.Optimizer, clip: float | None = None) -> list[float]:
    """Take 30 steps, clipped by torch if ``clip`` is not None; return the losses."""
    losses = []
    for blocks in load_blocks(STEPS * 4, 64).split(4):
        optimizer.zero_grad()
        loss = model(input_ids=blocks, labels=blocks).loss
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def list_codes(model: Any) -> dict[str, Tensor]:
    """Return copies of the frozen parameters by name: int8 codes, scales, and what is no matrix."""
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    parts = {}
    for name, param in frozen.items():
        stored = getattr(param, "tensor_data_names", None)
        parts |= {f"{name}.{k}": getattr(param, k).clone() for k in stored} if stored else {}
        parts |= {} if stored else {name: param.clone()}
    return parts


def main() -> None:
    """Compare with torch.optim, check the frozen weights, and save and load the adapters."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated", module="peft")
    theirs, ours = make_lora(), make_lora()
    before = list_codes(ours)
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2), CLIP)
    # frozen parameters may be given, as to torch.optim; they get no gradient and no state
    optimizer = AdamW(ours.parameters(), lr=1e-2, max_grad_norm=CLIP)
    losses = train(ours, optimizer)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    adapters = [[p for p in m.parameters() if p.requires_grad] for m in (ours, theirs)]
    print(f"adapters equal to torch.optim within 1e-3: {are_close(*adapters, 1e-3)}")
    print(f"states for the adapters alone: {set(optimizer.state) == set(adapters[0])}")
    after = list_codes(ours)
    same = all(torch.equal(before[name], after[name]) for name in before)
    codes = sum(part.dtype == torch.int8 for part in before.values())
    print(f"{codes} int8 weights and all else that is frozen: bit for bit as before: {same}")
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(Path(folder))
        loaded = PeftModel.from_pretrained(make_base(), folder, is_trainable=True)
    pairs = zip(adapters[0], (p for p in loaded.parameters() if p.requires_grad), strict=True)
    print(f"loaded adapters: the same: {all(torch.equal(p, q) for p, q in pairs)}")


if __name__ == "__main__":
    main()
