"""Symmetric products by QuACK, with a function in its place: the package needs an NVIDIA GPU.

Faults tried by hand: alpha and beta exchanged, a factor that is not transposed, a product that is
not symmetric, c left out, rows that do not begin at 16 bytes passed on, any device accepted.
"""

import importlib
import inspect
import sys
import types

import pytest
import torch
from helpers.models import parameters, set_grads, values

from fused_optim import Muon, NorMuon, memory
from fused_optim.matrix import symmetric_products
from fused_optim.testing.closeness import assert_as_accurate, assert_same_bits

# the parameters of gemm_symmetric of quack-kernels 0.6.5, with the defaults of those that we pass
SIGNATURE = {
    "A": inspect.Parameter.empty,
    "B": inspect.Parameter.empty,
    "C": None,
    "out": None,
    "out_dtype": None,
    "dynamic_scheduler": False,
    "alpha": 1.0,
    "beta": 1.0,
    "split_k": 1,
    "split_k_mode": 0,
}
SHAPES = [(256, 256), (256, 768), (776, 256), (264, 264)]
CALLS = []


def gemm_symmetric(
    A,
    B,
    C=None,
    out=None,
    out_dtype=None,
    dynamic_scheduler=False,
    alpha=1.0,
    beta=1.0,
    split_k=1,
    split_k_mode=0,
):
    """Return ``alpha * A @ B + beta * C``; only the lower triangle is computed, as in QuACK."""
    assert A.shape == B.mT.shape
    assert type(alpha) is type(beta) is float
    CALLS.append(tuple(A.shape))
    result = alpha * torch.bmm(A.float(), B.float())
    if C is not None:
        result += beta * C.float()
    lower = result.tril()
    return (lower + lower.tril(-1).mT).to(A.dtype)


@pytest.fixture
def quack(monkeypatch):
    """Put the function in the place of QuACK, on a device that counts as a GPU."""
    module = types.ModuleType("quack.gemm_interface")
    module.gemm_symmetric = gemm_symmetric
    monkeypatch.setitem(sys.modules, "quack", types.ModuleType("quack"))
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", module)
    monkeypatch.setattr(symmetric_products, "find_capability", lambda device: 9)
    CALLS.clear()


def find_installed():
    """Return the function of the installed package; None without it."""
    try:
        return importlib.import_module("quack.gemm_interface").gemm_symmetric
    except ImportError:
        return None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of packages that it imports
def test_the_signature_is_that_of_the_package():
    for function in filter(None, (gemm_symmetric, find_installed())):
        found = inspect.signature(function).parameters
        assert {name: one.default for name, one in found.items()} == SIGNATURE, function


def take_step(optimizer_class, start, grads, **options):
    params = parameters(start)
    set_grads(params, grads)
    optimizer_class(params, lr=1.0, weight_decay=0.0, **options).step()
    return [param.detach() for param in params]


@pytest.mark.parametrize(
    ("optimizer_class", "dtype", "algorithm"),
    [
        (Muon, torch.bfloat16, "standard"),
        (NorMuon, torch.bfloat16, "gram"),
        (Muon, torch.float16, "gram"),
    ],
)
def test_products_are_as_accurate_as_those_of_torch(quack, optimizer_class, dtype, algorithm):
    start = [torch.zeros(shape) for shape in SHAPES]
    grads = values(SHAPES, torch.float32, seed=1)
    options = {"ns_algorithm": algorithm}
    ours = take_step(optimizer_class, start, grads, ns_dtype=dtype, ns_products="quack", **options)
    assert {shape[-2:] for shape in CALLS} >= {(256, 256), (256, 768), (256, 776), (264, 264)}
    theirs = take_step(optimizer_class, start, grads, ns_dtype=dtype, **options)
    exact = take_step(optimizer_class, start, grads, ns_dtype=torch.float64, **options)
    for shape, a, b, c in zip(SHAPES, ours, theirs, exact, strict=True):
        assert_as_accurate(f"{shape}", a, b, c.double())


def test_matrices_that_the_kernel_does_not_read_are_multiplied_by_torch(quack):
    shapes = [(248, 512), (260, 260), (256, 260), (4, 4)]
    start, grads = values(shapes, torch.float32), values(shapes, torch.float32, seed=1)
    dtype = {"ns_dtype": torch.bfloat16}
    ours = take_step(Muon, start, grads, ns_products="quack", **dtype)
    theirs = take_step(Muon, start, grads, **dtype)
    assert [shape for shape in CALLS if shape[-2:] != (256, 256)] == []
    for shape, a, b in zip(shapes, ours, theirs, strict=True):
        if shape != (256, 260):  # its products of 256 x 256 are read
            assert_same_bits(str(shape), a, b)


def test_what_is_refused(quack, monkeypatch):
    params = parameters([torch.ones(4, 6)])
    with pytest.raises(ValueError, match=r"'w' .*bfloat16 or torch.float16 .*got torch.float32"):
        Muon([("w", params[0])], ns_products="quack")
    half = {"ns_dtype": torch.bfloat16}
    Muon(params, ns_products="quack", **half)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", None)
    for optimizer_class in (Muon, NorMuon):
        with pytest.raises(ImportError, match=r"quack-kernels.*pip install fused-optim\[quack\]"):
            optimizer_class(params, ns_products="quack", **half)
    with pytest.raises(ValueError, match="ns_products must be one of 'torch', 'quack', got 'cuda'"):
        Muon(params, ns_products="cuda")


def test_devices_that_are_refused(quack, monkeypatch, capsys):
    params = parameters([torch.ones(4, 6)])
    monkeypatch.setattr(symmetric_products, "find_capability", lambda device: 8)
    group = {"params": params, "ns_products": "quack", "ns_dtype": torch.float16}
    with pytest.raises(ValueError, match="in group 0 must be on an NVIDIA GPU of compute cap"):
        Muon([group])
    assert memory([group], Muon).states == params[0].nbytes  # on the meta device
    capsys.readouterr()


def test_only_nvidia_gpus_have_a_compute_capability(monkeypatch):
    assert symmetric_products.find_capability(torch.device("cpu")) is None
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert symmetric_products.find_capability(torch.device("cuda")) is None
