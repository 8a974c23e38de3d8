"""The values, parameters and gradients of fused_optim.testing, and the backends and sizes here."""

import os

from fused_optim.testing.inputs import exact_values, parameters, set_grads, state_of, values

__all__ = [
    "BACKENDS",
    "KERNELS",
    "LARGE",
    "SIZES",
    "exact_values",
    "make_model_small",
    "parameters",
    "set_grads",
    "state_of",
    "values",
]

# the backend that runs the Triton kernels here: see tests/conftest.py
KERNELS = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "native"
BACKENDS = ["reference", KERNELS]
# no tensor, one element, around one warp, around one chunk of the kernel, several chunks
SIZES = [0, 1, 2, 31, 1023, 1024, 1025, 4097]
LARGE = 65537


def make_model_small(monkeypatch, module):
    """Make the default model of ``examples.gpt.model`` one that takes milliseconds a step."""
    context, layers, heads, width = 16, 1, 2, 16
    monkeypatch.setattr(module.Shape.__init__, "__defaults__", (context, layers, heads, width))
