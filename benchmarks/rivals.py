"""Optimizers of other libraries: a line for each, used only if installed."""

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Rival:
    """An optimizer of another library.

    Attributes:
        name: in the results.
        package: the distribution whose version is reported.
        optimizer: the one of ours that it computes.
        format: the storage format, of :data:`benchmarks.variants.FORMATS`.
        target: module and class.
        options: its arguments, besides the learning rate.
        devices: where it runs.
    """

    name: str
    package: str
    optimizer: str
    format: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cuda",)

    def load(self) -> type[torch.optim.Optimizer]:
        """The class; ImportError or AttributeError if it is not there."""
        module, name = self.target.split(":")
        found: type[torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
        return found


ANYWHERE = ("cpu", "cuda")
TE = ("TransformerEngine", "transformer-engine")
TE_ADAM = "transformer_engine.pytorch.optimizers:FusedAdam"
TE_MASTER = {"master_weights": True}
TE_SPLIT = {**TE_MASTER, "store_param_remainders": True}
APEX = ("apex", "apex")
DEEPSPEED = ("DeepSpeed", "deepspeed")
BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
TORCHAO = ("torchao", "torchao")
OPTIMI = ("torch-optimi", "torch-optimi")
FLASH = ("flashoptim", "flashoptim")
RAW = {"quantize": False, "master_weight_bits": None}
HEAVY = {"momentum": 0.9}
L2 = {"adam_w_mode": False}

RIVALS = [
    Rival(*APEX, "AdamW", "fp32", "apex.optimizers:FusedAdam"),
    Rival(*APEX, "AdamW", "bf16-fp32", "apex.optimizers:FusedAdam"),
    Rival(*APEX, "Adam", "fp32", "apex.optimizers:FusedAdam", L2),
    Rival(*APEX, "SGD", "fp32", "apex.optimizers:FusedSGD", HEAVY),
    Rival(*APEX, "Adagrad", "fp32", "apex.optimizers:FusedAdagrad"),
    Rival(*APEX, "LAMB", "fp32", "apex.optimizers:FusedLAMB"),
    Rival(*TE, "AdamW", "fp32", TE_ADAM),
    Rival(*TE, "AdamW", "bf16-fp32", TE_ADAM),
    Rival(*TE, "AdamW", "master", TE_ADAM, TE_MASTER),
    Rival(*TE, "AdamW", "split", TE_ADAM, TE_SPLIT),
    Rival(*TE, "Adam", "fp32", TE_ADAM, L2),
    Rival(*TE, "SGD", "fp32", "transformer_engine.pytorch.optimizers:FusedSGD", HEAVY),
    Rival(*DEEPSPEED, "AdamW", "fp32", "deepspeed.ops.adam:FusedAdam"),
    Rival(*DEEPSPEED, "AdamW", "bf16-fp32", "deepspeed.ops.adam:FusedAdam"),
    Rival(*DEEPSPEED, "Adam", "fp32", "deepspeed.ops.adam:FusedAdam", L2),
    Rival(*DEEPSPEED, "AdamW", "fp32", "deepspeed.ops.adam:DeepSpeedCPUAdam", {}, ("cpu",)),
    Rival(*BITSANDBYTES, "AdamW", "fp32", "bitsandbytes.optim:AdamW32bit", {}, ANYWHERE),
    Rival(*BITSANDBYTES, "AdamW", "bf16-int8", "bitsandbytes.optim:AdamW8bit", {}, ANYWHERE),
    Rival(*BITSANDBYTES, "Adam", "fp32", "bitsandbytes.optim:Adam32bit", {}, ANYWHERE),
    Rival(*BITSANDBYTES, "SGD", "fp32", "bitsandbytes.optim:SGD32bit", HEAVY, ANYWHERE),
    Rival(*BITSANDBYTES, "Lion", "fp32", "bitsandbytes.optim:Lion32bit", {}, ANYWHERE),
    Rival(*BITSANDBYTES, "Adagrad", "fp32", "bitsandbytes.optim:Adagrad32bit", {}, ANYWHERE),
    Rival(*BITSANDBYTES, "RMSprop", "fp32", "bitsandbytes.optim:RMSprop32bit", {}, ANYWHERE),
    Rival(*TORCHAO, "AdamW", "bf16-int8", "torchao.optim:AdamW8bit", {}, ANYWHERE),
    Rival(*OPTIMI, "AdamW", "fp32", "optimi:AdamW", {"triton": True}),
    Rival(*OPTIMI, "AdamW", "kahan", "optimi:AdamW", {"triton": True, "kahan_sum": True}),
    Rival(*OPTIMI, "Adam", "fp32", "optimi:Adam", {"triton": True}),
    Rival(*OPTIMI, "SGD", "fp32", "optimi:SGD", {"triton": True, **HEAVY}),
    Rival(*OPTIMI, "Lion", "fp32", "optimi:Lion", {"triton": True}),
    Rival(*FLASH, "AdamW", "fp32", "flashoptim:FlashAdamW", RAW),
    Rival(*FLASH, "AdamW", "bf16-int8", "flashoptim:FlashAdamW", {"master_weight_bits": None}),
    Rival(*FLASH, "AdamW", "split", "flashoptim:FlashAdamW", {**RAW, "master_weight_bits": 32}),
    Rival(*FLASH, "AdamW", "split-int8", "flashoptim:FlashAdamW", {"master_weight_bits": 32}),
    Rival(*FLASH, "AdamW", "split24-int8", "flashoptim:FlashAdamW", {"master_weight_bits": 24}),
    Rival(*FLASH, "SGD", "fp32", "flashoptim:FlashSGD", {**RAW, **HEAVY}),
    Rival(*FLASH, "Lion", "fp32", "flashoptim:FlashLion", RAW),
]
