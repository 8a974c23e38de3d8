"""The patched casts of the interpreter, compared with torch's."""

import numpy as np
import torch
from helpers.interpreter_patches import to_bfloat16

from fused_optim.testing.closeness import assert_same_bits


def test_casts_to_bfloat16_round_to_nearest_even():
    """Guard against wrong ties, carries, denormals, Inf and NaN in the patch itself."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | np.uint32(lower)).view(np.float32)
        ours = torch.from_numpy(to_bfloat16(x).view(np.int16)).view(torch.bfloat16)
        assert_same_bits(hex(lower), ours, torch.from_numpy(x).bfloat16())
