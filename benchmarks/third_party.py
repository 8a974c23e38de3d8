"""Optimizers of other libraries: one line for each, timed only if installed."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Library:
    """An optimizer of another library.

    Attributes:
        name: label in the results.
        package: name of the distribution whose version is reported.
        optimizer: name of our optimizer that computes the same update.
        format: storage format, a key of :data:`benchmarks.variants.FORMATS`.
        target: import path, ``module:class``.
        options: keyword arguments except the learning rate.
        devices: device types that the library supports.
    """

    name: str
    package: str
    optimizer: str
    format: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cuda",)

    def load(self) -> Callable[..., torch.optim.Optimizer]:
        """Import the class.

        Raises:
            ImportError: the module does not exist.
            AttributeError: the module lacks the class.
        """
        module, name = self.target.split(":")
        found: Callable[..., torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
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
DEEPSPEED_CPU = "deepspeed.ops.adam:DeepSpeedCPUAdam"
CPU = ("cpu",)

THIRD_PARTY = [
    Library(*APEX, "AdamW", "fp32", "apex.optimizers:FusedAdam"),
    Library(*APEX, "AdamW", "bf16-fp32", "apex.optimizers:FusedAdam"),
    Library(*APEX, "Adam", "fp32", "apex.optimizers:FusedAdam", L2),
    Library(*APEX, "SGD", "fp32", "apex.optimizers:FusedSGD", HEAVY),
    Library(*APEX, "Adagrad", "fp32", "apex.optimizers:FusedAdagrad"),
    Library(*APEX, "LAMB", "fp32", "apex.optimizers:FusedLAMB"),
    Library(*TE, "AdamW", "fp32", TE_ADAM),
    Library(*TE, "AdamW", "bf16-fp32", TE_ADAM),
    Library(*TE, "AdamW", "master", TE_ADAM, TE_MASTER),
    Library(*TE, "AdamW", "split", TE_ADAM, TE_SPLIT),
    Library(*TE, "Adam", "fp32", TE_ADAM, L2),
    Library(*TE, "SGD", "fp32", "transformer_engine.pytorch.optimizers:FusedSGD", HEAVY),
    Library(*DEEPSPEED, "AdamW", "fp32", "deepspeed.ops.adam:FusedAdam"),
    Library(*DEEPSPEED, "AdamW", "bf16-fp32", "deepspeed.ops.adam:FusedAdam"),
    Library(*DEEPSPEED, "Adam", "fp32", "deepspeed.ops.adam:FusedAdam", L2),
    Library(*DEEPSPEED, "AdamW", "fp32", DEEPSPEED_CPU, {}, CPU),
    Library(*DEEPSPEED, "AdamW", "bf16-fp32", DEEPSPEED_CPU, {}, CPU),
    Library(*DEEPSPEED, "AdamW", "bf16", DEEPSPEED_CPU, {"fp32_optimizer_states": False}, CPU),
    Library(*DEEPSPEED, "Adam", "fp32", DEEPSPEED_CPU, {"adamw_mode": False}, CPU),
    Library(*BITSANDBYTES, "AdamW", "fp32", "bitsandbytes.optim:AdamW32bit", {}, ANYWHERE),
    Library(*BITSANDBYTES, "AdamW", "bf16-int8", "bitsandbytes.optim:AdamW8bit", {}, ANYWHERE),
    Library(*BITSANDBYTES, "Adam", "fp32", "bitsandbytes.optim:Adam32bit", {}, ANYWHERE),
    Library(*BITSANDBYTES, "SGD", "fp32", "bitsandbytes.optim:SGD32bit", HEAVY, ANYWHERE),
    Library(*BITSANDBYTES, "Lion", "fp32", "bitsandbytes.optim:Lion32bit", {}, ANYWHERE),
    Library(*BITSANDBYTES, "Adagrad", "fp32", "bitsandbytes.optim:Adagrad32bit", {}, ANYWHERE),
    Library(*BITSANDBYTES, "RMSprop", "fp32", "bitsandbytes.optim:RMSprop32bit", {}, ANYWHERE),
    Library(*TORCHAO, "AdamW", "bf16-int8", "torchao.optim:AdamW8bit", {}, ANYWHERE),
    Library(*OPTIMI, "AdamW", "fp32", "optimi:AdamW", {"triton": True}),
    Library(*OPTIMI, "AdamW", "kahan", "optimi:AdamW", {"triton": True, "kahan_sum": True}),
    Library(*OPTIMI, "AdamW", "kahan", "optimi:AdamW", {"foreach": True, "kahan_sum": True}, CPU),
    Library(*OPTIMI, "Adam", "fp32", "optimi:Adam", {"triton": True}),
    Library(*OPTIMI, "SGD", "fp32", "optimi:SGD", {"triton": True, **HEAVY}),
    Library(*OPTIMI, "Lion", "fp32", "optimi:Lion", {"triton": True}),
    Library(*FLASH, "AdamW", "fp32", "flashoptim:FlashAdamW", RAW),
    Library(*FLASH, "AdamW", "bf16-int8", "flashoptim:FlashAdamW", {"master_weight_bits": None}),
    Library(*FLASH, "AdamW", "split", "flashoptim:FlashAdamW", {**RAW, "master_weight_bits": 32}),
    Library(*FLASH, "AdamW", "split-int8", "flashoptim:FlashAdamW", {"master_weight_bits": 32}),
    Library(*FLASH, "AdamW", "split24-int8", "flashoptim:FlashAdamW", {"master_weight_bits": 24}),
    Library(*FLASH, "SGD", "fp32", "flashoptim:FlashSGD", {**RAW, **HEAVY}),
    Library(*FLASH, "Lion", "fp32", "flashoptim:FlashLion", RAW),
]
