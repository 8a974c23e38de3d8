"""Optimizers whose launches go through Triton's own drivers, and what must arrive of a launch."""

import struct

import driver_stubs
import pytest
import torch
from driver_stubs.hip import kernarg
from helpers.models import exact_values, parameters, set_grads, state_of, values
from helpers.tolerances import assert_same_bits

import fused_optim

needs_compiler = pytest.mark.skipif(
    driver_stubs.c_compiler() is None, reason="no C compiler: neither gcc nor clang, nor CC is set"
)
NO_HIP = driver_stubs.why_no_hip()
CUDA = pytest.param(driver_stubs.cuda, id="cuda")
HIP = pytest.param(
    driver_stubs.hip, id="hip", marks=pytest.mark.skipif(NO_HIP is not None, reason=str(NO_HIP))
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
    # its small tensors are a kind of their own
    "adamw-split-int8": (fused_optim.AdamW, BF16, INT8, [name for name in THREE for _ in range(2)]),
    "adan-average": (fused_optim.Adan, torch.float32, {"ema_decay": 0.9}, ["prepare", "update"]),
    "rmsprop-stalled": (fused_optim.RMSprop, BF16, {"count_stalled": True}, ["prepare", "update"]),
    "adamw-float64": (fused_optim.AdamW, torch.float64, CLIPPED, THREE),
}


class Pair:
    """An optimizer whose launches go through a driver, and the reference, on equal tensors.

    Args:
        case: one of CASES.
        shapes: of the parameters.
        put: what is done with each parameter and gradient of the first, given its number.
        more: options beside those of the case.
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
        """New gradients whose squares add up without rounding, the same for both."""
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
        """Parameters and states are equal, where the driver's launches are executed."""
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
    """The tensors among its arguments."""
    return [argument.value for argument in launch.arguments if argument.type[0] == "*"]


def assert_packed(launch):
    """Each argument has arrived, in its place and width; null pointers to scratch memory follow."""
    codes, found = [], []
    for _, kind, value in launch.arguments:
        codes.append({"*": "P", "i32": "i", "i64": "q"}["*" if kind[0] == "*" else kind])
        found.append(value.data_ptr() if kind[0] == "*" else value)
    arrived, scratch = launch.parameters[: len(found)], launch.parameters[len(found) :]
    assert arrived == tuple(map(struct.pack, codes, found))
    assert scratch in ((bytes(8),), (bytes(8),) * 2)
    if launch.kernel.target == "hip":  # what a kernel reads is a struct as C lays it out
        layout = "".join([*codes, *["P" for _ in scratch]])
        assert kernarg(launch) == struct.pack(layout, *found, *[0 for _ in scratch])
