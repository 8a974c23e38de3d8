"""The building blocks of the rules: equal bits in torch and Triton, accurate to a few ulp.

Faults tried by hand: 13 for 14 terms in ``exp``, 33 for 35 in ``log``, ``torch.exp`` for ``exp``,
``torch.log`` for ``log`` (whose accuracy fails too), one root in a thousand a bit off.
"""

from functools import cache

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fused_optim.kernels.rules import common as device
from fused_optim.kernels.signatures import CommonScalars
from fused_optim.rules import common as host
from fused_optim.testing.closeness import assert_same_bits

COUNT = 1 << 20
PARTS = [(0, 1), (1, 1), (0, 7), (3, 7), (0, 1025), (1, 1025), (5, COUNT // 8)]


@triton.jit
def elementary(x_ptr, y_ptr, out_ptr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if FUNCTION == "sqrt_rn":
        out = device.sqrt_rn(x)
    elif FUNCTION == "decay":
        out = device.decay(x, y)
    elif FUNCTION == "pow_int":
        out = device.pow_int(x, y)
    elif FUNCTION == "exp":
        out = device.exp(x)
    elif FUNCTION == "log":
        out = device.log(x)
    elif FUNCTION == "pow_real":
        out = device.pow_real(x, y)
    elif FUNCTION == "clip_factor":
        out = device.clip_factor(x, y)
    elif FUNCTION == "ema_update":
        out = device.ema_update(x, y, 0.25)
    else:
        # a literal would be rounded to float32
        factor, limit = tl.full((), 0.7, tl.float64), tl.full((), 0.9, tl.float64)
        l2, l1 = tl.full((), 0.1, tl.float64), tl.full((), 0.2, tl.float64)
        scalars = CommonScalars(0, 0, 0, 0, factor, limit, l2, l1)
        out = device.preprocess_grad(x, y, scalars)
    tl.store(out_ptr + i, out)


HOST = {
    "sqrt_rn": lambda x, y: host.sqrt_rn(x),
    "decay": host.decay,
    "pow_int": host.pow_int,
    "exp": lambda x, y: host.exp(x),
    "log": lambda x, y: host.log(x),
    "pow_real": host.pow_real,
    "clip_factor": host.clip_factor,
    "ema_update": lambda x, y: host.ema_update(x, y, torch.full_like(x, 0.25)),
    "preprocess_grad": lambda x, y: host.preprocess_grad(
        x, y, CommonScalars(0, 0, 0, 0, x.new_tensor(0.7), 0.9, 0.1, 0.2)
    ),
}
# an ulp is between 1.1e-16 and 2.2e-16 of a number
BOUNDS = {"pow_int": 1.2e-16, "exp": 2e-16, "log": 3.5e-16, "pow_real": 4e-16}
EXACT = {"pow_int": np.power, "exp": np.exp, "log": np.log, "pow_real": np.power}


def arguments(name, count=COUNT):
    """Return float64 arguments of every size that the rules pass, and special ones."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, count, dtype=torch.float64, generator=generator)
    special = [1.0, 2.0, 0.5, 1e-300, 1e300, 1e7]
    if name == "exp":
        special = [0.0, -1e-4, -1e-300, 1.0, -700.0, 700.0]
        x = 40.0 * (x - 0.9)
    elif name == "pow_int":
        special = [0.0, 0.9, 0.999, 0.9999, 0.5, 1.0]
        y = (1024.0 * y).floor()
    elif name in ("log", "pow_real"):
        # half of them without a power of two, which would hide the series
        x[: count // 2] = torch.exp(60.0 * (x[: count // 2] - 0.7))
        x[count // 2 :] += 0.9
        y = 3.0 * y
        y[:12] = torch.tensor([0.0, 1.0, 0.5, 0.1, 0.25, 2.0] * 2)
    else:
        special = [0.0, -0.0, 1e-310, -1e300, torch.inf, -torch.inf, torch.nan]
        x, y = 4.0 * x - 2.0, 2.0 * y
    x[: len(special)] = torch.tensor(special, dtype=torch.float64)
    return x, y


@cache
def computed(name):
    """Return the results of the torch function."""
    return HOST[name](*arguments(name))


@pytest.mark.interpreted(only=True)
@pytest.mark.parametrize("name", HOST)
def test_torch_and_triton_give_the_same_bits(name):
    """Guard against bits that differ between torch and the interpreter, which uses numpy."""
    x, y = arguments(name)
    out = torch.empty_like(x)
    elementary[(1,)](x, y, out, name, COUNT)
    result = computed(name)
    assert_same_bits(name, out, result)
    for start, size in PARTS:
        part = slice(start, start + size)
        assert_same_bits(f"{name} of {part}", HOST[name](x[part], y[part]), result[part])


@pytest.mark.parametrize("name", EXACT)
def test_accuracy(name):
    """Guard against errors above a few ulp, relative to the result or to the size of its terms."""
    x, y = (z.numpy().astype(np.longdouble) for z in arguments(name))
    exact = EXACT[name](x, y) if name.startswith("pow") else EXACT[name](x)
    error = np.abs(computed(name).numpy() - exact)
    size = np.abs(exact)
    if name == "log":
        size = np.maximum(size, 1.0)
    elif name == "pow_real":  # exp of a number with roundings of its own
        size *= 1.0 + np.abs(np.log(exact))
    elif name == "pow_int":  # so many factors, each with a rounding
        size *= 1.0 + y
    # where numpy has nothing wider than float64, the exact value has an error of an ulp
    bound = BOUNDS[name] + float(np.finfo(np.longdouble).eps)
    # below the least normal number the last bit is worth more
    assert np.all(error <= bound * size + 5e-324)


def test_powers_of_zero():
    zero, exponents = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 2.0]).double()
    assert host.pow_real(zero, exponents).tolist() == [1.0, 0.0]
