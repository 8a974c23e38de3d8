"""Optimizers whose launches go through Triton's own drivers, and checks of received launches."""

import struct

import pytest
import torch
from helpers.models import exact_values, parameters, set_grads, state_of, values

import fused_optim
from ci import driver_stubs
from ci.codegen.linker import NO_AMD_LINKER, has_amd_linker
from ci.driver_stubs.hip import kernarg
from fused_optim.testing.closeness import assert_same_bits

needs_compiler = pytest.mark.skipif(
    driver_stubs.c_compiler() is None, reason="no C compiler: neither gcc nor clang, nor CC is set"
)
CUDA = pytest.param(driver_stubs.cuda, id="cuda")
HIP = pytest.param(
    driver_stubs.hip, id="hip", marks=pytest.mark.skipif(not has_amd_linker(), reason=NO_AMD_LINKER)
)
each_vendor = pytest.mark.parametrize("stub", [CUDA, HIP])

SHAPES = [(1,), (31,), (0,), (1025,), (3, 1500)]
BF16 = torch.bfloat16
CLIPPED = {"lr": 0.1, "max_grad_norm": 3.0}
SKIPPING = {"lr": 0.1, "momentum": 0.9, "nonfinite": "skip"}
INT8 = {**CLIPPED, "weights": "split", "states": "int8"}
THREE = ["norm", "prepare", "update"]
EVERY = ["norm", "prepare", "reduce", "finalize", "update"]
# optimizer, dtype, options, and the kernels of a step
CASES = {
    "adamw": (fused_optim.AdamW, torch.float32, CLIPPED, THREE),
    "sgd-skip": (fused_optim.SGD, torch.float32, SKIPPING, THREE),
    "lamb": (fused_optim.LAMB, torch.float32, CLIPPED, EVERY),
    # small tensors have other formats, so they are launched separately
    "adamw-split-int8": (fused_optim.AdamW, BF16, INT8, [name for name in THREE for _ in range(2)]),
    "adan-average": (fused_optim.Adan, torch.float32, {"ema_decay": 0.9}, ["prepare", "update"]),
    "rmsprop-stalled": (fused_optim.RMSprop, BF16, {"count_stalled": True}, ["prepare", "update"]),
    "adamw-float64": (fused_optim.AdamW, torch.float64, CLIPPED, THREE),
}


class StubPair:
    """An optimizer whose launches go through a driver, and the reference, on equal tensors.

    Args:
        case: key of CASES.
        shapes: shapes of the parameters.
        put: function that places a parameter or gradient of the first optimizer, given its index.
        more: further options of the optimizers.
    """

    def __init__(self, case, shapes=SHAPES, put=None, **more):
        fused, dtype, options, self.kernels = CASES[case]
        start = values(shapes, dtype)
        self.params, self.others = parameters(start), parameters(start)
        self.kernel, self.reference = (
            fused(params, backend=backend, **{**options, **more})
            for params, backend in ((self.params, "triton"), (self.others, "reference"))
        )
        self.seed, self.put = 0, put or (lambda tensor, i: tensor)
        for i, param in enumerate(self.params):
            self.put(param, i)

    def set_grads(self):
        """Set new gradients, equal for both, whose squares add up without rounding."""
        self.seed += 1
        grads = exact_values([p.shape for p in self.others], self.others[0].dtype, self.seed)
        set_grads(self.others, grads)
        for i, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            param.grad = self.put(grad.clone(), i)

    def step(self):
        self.set_grads()
        self.kernel.step()
        self.reference.step()

    def check(self, driver):
        """Assert equal parameters and states if the driver executes launches."""
        if not driver.executes:
            return
        for i, (param, other) in enumerate(zip(self.params, self.others, strict=True)):
            ours, theirs = (
                {"param": p.detach(), **state_of(optimizer, p)}
                for optimizer, p in ((self.kernel, param), (self.reference, other))
            )
            assert ours.keys() == theirs.keys()
            for name in theirs:
                assert_same_bits(f"{name} {i}", ours[name].to("cpu"), theirs[name])


def names(launches):
    return [launch.kernel.name for launch in launches]


def pointers(launch):
    """Return the tensors among the arguments of a launch."""
    return [argument.value for argument in launch.arguments if argument.type[0] == "*"]


def assert_packed(launch):
    """Assert that the parameters are the arguments in order and width, then null pointers."""
    codes, found = [], []
    for _, kind, value in launch.arguments:
        codes.append({"*": "P", "i32": "i", "i64": "q"}["*" if kind[0] == "*" else kind])
        found.append(value.data_ptr() if kind[0] == "*" else value)
    arrived, scratch = launch.parameters[: len(found)], launch.parameters[len(found) :]
    assert arrived == tuple(map(struct.pack, codes, found))
    assert scratch in ((bytes(8),), (bytes(8),) * 2)
    if launch.kernel.target == "hip":  # a kernel reads its arguments from a C struct
        layout = "".join([*codes, *["P" for _ in scratch]])
        assert kernarg(launch) == struct.pack(layout, *found, *[0 for _ in scratch])
