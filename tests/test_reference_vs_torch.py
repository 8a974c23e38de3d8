"""The reference compared with torch.optim: as close to float64 as torch, in every dtype.

The exact run is torch.optim in float64 on the same parameters and gradients, for 50 steps. Faults
tried by hand: a step that does nothing, decoupled decay where L2 is meant and the reverse, a
missing bias correction, ``eps`` inside the root, a wrong sign for ``maximize``, clipping after the
decay, ``l1`` before clipping, dampening of the first gradient.
"""

import pytest
import torch
from helpers.models import KERNELS, values
from helpers.torch_comparison import compare_with_torch

from fused_optim.testing.cases import CASES, ONE_PER_CLASS, get_name

PAIRS = [case for case in CASES if case.torch_class is not None]
FIRST = [case for case in ONE_PER_CLASS if case in PAIRS]
SHAPES = [(1,), (33, 65), (3, 341), (0,), ()]


@pytest.mark.parametrize("case", PAIRS, ids=get_name)
def test_reference(case):
    """Guard against errors above twice torch's own, in parameters and states."""
    compare_with_torch(case, values(SHAPES, torch.float32), torch.float32, "reference")


# rounding depends on the states of a class, and not on its options
@pytest.mark.parametrize("case", FIRST, ids=get_name)
def test_bf16(case):
    compare_with_torch(case, values(SHAPES, torch.bfloat16), torch.bfloat16, "reference")


@pytest.mark.parametrize("case", PAIRS, ids=get_name)
def test_triton(case):
    """Guard against faults that the kernels share with the reference, in a few steps."""
    compare_with_torch(case, values([(7,), (1030,)], torch.float32), torch.float32, KERNELS, 3)


def test_fp16():
    """Guard against overflow where torch has none; its Adam overflows in fp16."""
    for case in PAIRS:
        if case.name in ("adamw-betas", "sgd-nesterov", "sgd-norm-value"):
            compare_with_torch(case, values(SHAPES, torch.float16), torch.float16, "reference")


def test_float64_differs_from_torch_by_rounding_only():
    """Guard against scalars formed in float32, which would be off by 1e-8."""
    for case in PAIRS:
        start = values([(65,)], torch.float64)
        compare_with_torch(case, start, torch.float64, "reference", steps=20)
