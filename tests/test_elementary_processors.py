"""The same bits on every processor, with any number of threads, whatever a library rounds to.

Every other processor is one that this one can stand in for: torch, numpy, MKL and the C library
choose their code by what the processor has, and can be told that it has less. What this one lacks
cannot be had; a library that errs there is imitated.

Tried by hand, each seen to fail: ``.sqrt()`` for ``root`` in adam.py, lamb.py, lars.py,
stable_adamw.py and in the norm of reference.py (one bit off); ``torch.exp`` in ``exp`` and
``torch.log`` in ``log`` (one bit off, and on another processor); ``.sum()`` for the sum of squares
and for the sums of each tensor (threads); pieces of ``CHUNK * threads + 1`` elements (threads).
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES, named
from digests import blocks, digest, steps

ROOT = Path(__file__).parent.parent
CAPABILITIES = ["default", "avx2", "avx512"]
# what a library may round otherwise on another processor
LIBRARY = """sqrt rsqrt exp exp2 expm1 log log2 log10 log1p pow float_power __pow__ __rpow__ sum
mean norm dot var std lerp addcmul addcdiv hypot sin cos tan tanh sigmoid"""


def without(features):
    """The variables that make numpy, MKL and the C library do without what is newer."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    newer = [name for name in found if name.startswith(features)]
    level = "SSE4_2" if "X86_V3" in newer else "AVX2"
    tunables = "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX2_Usable,-FMA_Usable" if level == "SSE4_2" else ""
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(newer),
        "MKL_ENABLE_INSTRUCTIONS": level,
        "GLIBC_TUNABLES": tunables,
    }


def processors():
    """The environment of each processor that this one can stand in for, the oldest first."""
    own = torch.backends.cpu.get_cpu_capability().lower()
    last = CAPABILITIES.index(own) if own in CAPABILITIES else 0
    found = {name: {"ATEN_CPU_CAPABILITY": name} for name in CAPABILITIES[: last + 1]}
    if last:
        found["default"] |= without(("X86_V3", "AVX2", "FMA3", "X86_V4", "AVX512"))
        found["avx2"] |= without(("X86_V4", "AVX512"))
    return found


def start(processor):
    """Run tests/digests.py in the environment of a processor."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # threads that wait must not count meanwhile, for the processes share the cores
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", **processor}
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "digests.py")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_processors_and_threads():
    """One process for each processor; each computes with one thread, then with two."""
    started = {name: start(processor) for name, processor in processors().items()}
    outputs = {name: process.communicate() for name, process in started.items()}
    found = {}
    for name, (output, error) in outputs.items():
        assert started[name].returncode == 0, error
        answer = json.loads(output)
        assert answer["capability"] == name.upper()
        found |= {f"{name}, {threads} threads": answer[threads] for threads in ("1", "2")}
    first, *others = found
    for other in others:
        different = [key for key, bits in found[first].items() if found[other][key] != bits]
        assert not different, f"{other} differs from {first}: {different}"


def one_bit_off(function):
    """``function`` with its floating results one unit in the last place too large."""

    def wrong(*args, **kwargs):
        result = function(*args, **kwargs)
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        return torch.nextafter(result, torch.full_like(result, math.inf))

    return wrong


def make_wrong(monkeypatch):
    """Make torch as it is on a processor where its library is a bit off."""
    for place in (torch, torch.Tensor):
        for name in LIBRARY.split():
            if hasattr(place, name):
                monkeypatch.setattr(place, name, one_bit_off(getattr(place, name)))
    two = torch.tensor([4.0, 4.0])
    for wrong in (two.sqrt(), torch.sqrt(two), two**0.5, 4.0 ** (two / 8.0), two.rsqrt() * 4.0):
        assert 2.0 not in wrong.tolist()
    assert two.sum() != 8.0


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_library_that_is_one_bit_off_changes_no_step(case, monkeypatch):
    def found():
        return [digest(steps(case, dtype, [5, 1025])) for dtype in (torch.float32, torch.float64)]

    expected = found()
    make_wrong(monkeypatch)
    assert found() == expected


def test_a_library_that_is_one_bit_off_changes_no_block(monkeypatch):
    expected = blocks()
    make_wrong(monkeypatch)
    assert blocks() == expected
