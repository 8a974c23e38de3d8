"""A warning of states that stand still in the dtype that they are kept in."""

import warnings
from typing import Any

import torch
from torch import Tensor

from fused_optim import formats
from fused_optim.rules.common import Rule


def warn_of_decay(rule: Rule, hparams: Any, group: dict[str, Any]) -> None:
    """Warn of a state of ``group`` that its own rounding would keep from growing smaller.

    Args:
        rule: of the group.
        hyper: its options, as ``rule.hyper`` names them.
        group: with parameters, of which those that are trained matter.
    """
    trained = {param.dtype for param in group["params"] if param.requires_grad}
    for state_key, option in rule.nonnegative:
        if option is None or isinstance(getattr(hparams, option), Tensor):
            continue
        for dtype in trained & set(formats.HALVES):
            moves = 1.0 - getattr(hparams, option)
            if group["states"] == "param" and moves < torch.finfo(dtype).eps / 4:
                warnings.warn(
                    f"{slot} in {dtype} cannot decay: {option} takes {moves:.2g} of it a step, "
                    "less than half an ulp; states='bf16' or 'fp32' do not have that",
                    stacklevel=3,
                )
