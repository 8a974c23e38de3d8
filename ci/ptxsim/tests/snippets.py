"""Pieces of PTX as kernels: each thread loads its inputs, runs the piece, stores the results."""

import functools
import subprocess

import numpy as np
import pytest
import triton
from packaging.version import Version

from ci import ptxsim

MODULE = """
.version {version}
.target {target}
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry snippet(
{parameters}
)
.reqntid {threads}
{{
    .reg .pred %p<5>;
    .reg .b16 %h<9>;
    .reg .b32 %r<9>;
    .reg .b64 %d<9>;
    .reg .b32 %index<3>;
    {registers}
    mov.u32 %index1, %ctaid.x;
    mov.u32 %index2, %tid.x;
    mad.lo.s32 %index0, %index1, {threads}, %index2;
    {loads}
    {code}
    {stores}
    ret;
}}
"""


# from 3.6 on Triton's wheel has a second assembler, for Blackwell
HAS_BLACKWELL_PTXAS = Version(triton.__version__).release >= (3, 6)


@functools.cache
def assemble(ptx: str, target: str) -> None:
    """Check the text with NVIDIA's assembler."""
    nvidia = triton.knobs.nvidia
    if not target.startswith("sm_1"):
        path = nvidia.ptxas.path
    elif HAS_BLACKWELL_PTXAS:
        path = nvidia.ptxas_blackwell.path
    else:
        pytest.skip("the assembler before Triton 3.6 does not know the PTX for Blackwell")
    command = [path, f"--gpu-name={target}", "-", "-o", "/dev/null"]
    result = subprocess.run(command, input=ptx, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr + ptx


def module(code, sizes, out_sizes, threads, target):
    """Return the PTX of a snippet.

    Args:
        code: instructions of a thread.
        sizes: bytes of an element of each input.
        out_sizes: bytes of an element of each output.
        threads: threads of a block.
        target: name of the GPU target.
    """
    names = [f"x{i}" for i in range(len(sizes))] + [f"y{i}" for i in range(len(out_sizes))]
    parts = {"registers": [], "loads": [], "stores": []}
    for name, size in zip(names, [*sizes, *out_sizes], strict=True):
        parts["registers"].append(f".reg .b64 %at_{name}; .reg .b{max(size * 8, 16)} %{name};")
        parts["loads"].append(f"ld.param.b64 %at_{name}, [{name}];")
        parts["loads"].append(f"mad.wide.u32 %at_{name}, %index0, {size}, %at_{name};")
        if name.startswith("x"):
            parts["loads"].append(f"ld.global.b{size * 8} %{name}, [%at_{name}];")
        else:
            parts["stores"].append(f"st.global.b{size * 8} [%at_{name}], %{name};")
    joined = {key: "\n    ".join(lines) for key, lines in parts.items()}
    parameters = ",\n".join(f"    .param .b64 {name}" for name in names)
    version = "8.8" if target.startswith("sm_1") else "8.7"
    return MODULE.format(
        version=version, target=target, threads=threads, code=code, parameters=parameters, **joined
    )


def apply(code, *inputs, out, threads=32, target="sm_90a", shared=0, extra=(), **options):
    """Run ``code`` for each element, from registers %x0, %x1... to %y0, %y1..., and return these.

    Args:
        code: instructions of a thread.
        inputs: arrays of one length, a multiple of ``threads``.
        out: dtype of the result, or a tuple of the dtypes of several results.
        threads: threads of a block.
        target: name of the GPU target.
        shared: bytes of shared memory.
        extra: other arrays that the code may access.
        options: fields of ``Options``; ``check=False`` skips NVIDIA's assembler.
    """
    inputs = [np.ascontiguousarray(x) for x in inputs]
    count = len(inputs[0]) if inputs else threads
    assert count % threads == 0
    dtypes = [np.dtype(dtype) for dtype in (out if isinstance(out, tuple) else (out,))]
    results = [np.zeros(count, dtype) for dtype in dtypes]
    sizes = [[array.itemsize for array in arrays] for arrays in (inputs, results)]
    ptx = module(code, *sizes, threads, target)
    if options.pop("check", True):
        assemble(ptx, target)
    arrays = [*inputs, *results]
    memory = ptxsim.Memory((array.ctypes.data, array.nbytes) for array in (*arrays, *extra))
    addresses = [array.ctypes.data for array in arrays]
    grid, options = (count // threads,), ptxsim.Options(**options)
    ptxsim.run(ptx, grid, threads, addresses, memory, shared, options)
    return tuple(results) if isinstance(out, tuple) else results[0]


def same_bits(actual, expected):
    """Assert that two arrays have the same bits; the message has the first difference."""
    assert actual.dtype.itemsize == expected.dtype.itemsize
    unsigned = np.dtype(f"u{actual.itemsize}")
    differ = np.flatnonzero(actual.view(unsigned) != expected.view(unsigned))
    where = differ[:1]
    assert not len(differ), f"{len(differ)}, at {where}: {actual[where]}, not {expected[where]}"


def integers(bits, count=256):
    """Return ``count`` small, large and random bit patterns of ``bits`` bits."""
    edges = [0, 1, 2, 3, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, 0x55, 100]
    values = np.random.default_rng(bits).integers(0, 1 << bits, count, dtype=np.uint64)
    values[:54] = np.resize(np.array(edges, np.uint64), 54)
    return values.astype(f"u{bits // 8}")
