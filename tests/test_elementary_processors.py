"""Equal bits on every processor, with any number of threads, whatever a library rounds to.

Every other processor is one that this one can stand in for: torch, numpy, MKL and the C library
choose their code by what the processor has, and can be told that it has less. What this one lacks
cannot be had; a library that errs there is imitated.

Faults tried by hand: ``.sqrt()`` for ``root`` in adam.py, lamb.py, lars.py, stable_adamw.py and in
the norm of reference.py, ``torch.exp`` in ``exp``, ``torch.log`` in ``log``, ``.sum()`` for the
sums of each tensor (one bit off); ``.sum()`` for the sum of squares, and pieces of ``CHUNK *
threads + 1`` elements (threads); gradients from ``torch.randn`` (processors).
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
from helpers.digests import blocks, digest, steps, uniform

from fused_optim.backends import sums
from fused_optim.testing.cases import CASES, get_name
from fused_optim.testing.closeness import assert_same_bits

ROOT = Path(__file__).parent.parent
CAPABILITIES = ["default", "avx2", "avx512"]
# functions that a library may round otherwise on another processor
LIBRARY = """sqrt rsqrt exp exp2 expm1 log log2 log10 log1p pow float_power __pow__ __rpow__ sum
mean norm dot var std lerp addcmul addcdiv hypot sin cos tan tanh sigmoid"""


def without(*features):
    """Return numpy's names of the given instruction sets, as far as it uses them here."""
    result = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return " ".join(name for name in result if name.startswith(features))


def processors():
    """Return the environment of each processor that this one can imitate, the oldest first."""
    own = torch.backends.cpu.get_cpu_capability().lower()
    last = CAPABILITIES.index(own) if own in CAPABILITIES else 0
    result = {name: {"ATEN_CPU_CAPABILITY": name} for name in CAPABILITIES[: last + 1]}
    if last:
        result["default"] |= {
            "NPY_DISABLE_CPU_FEATURES": without("X86_V3", "AVX2", "FMA3", "X86_V4", "AVX512"),
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",
        }
        result["avx2"] |= {
            "NPY_DISABLE_CPU_FEATURES": without("X86_V4", "AVX512"),
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        }
    return result


def start(processor):
    """Start helpers/digests.py in the environment of a processor."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    # threads that wait must not count meanwhile, for the processes share the cores
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", **processor}
    command = [sys.executable, "-W", "ignore", "-m", "helpers.digests"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_processors_and_threads():
    """Guard against bits that depend on the processor or the number of threads."""
    started = {name: start(processor) for name, processor in processors().items()}
    outputs = {name: process.communicate() for name, process in started.items()}
    result = {}
    for name, (output, error) in outputs.items():
        assert started[name].returncode == 0, error
        answer = json.loads(output.splitlines()[-1])  # MKL may warn before
        assert answer["capability"] == name.upper()  # as torch detected it
        result |= {f"{name}, {threads} threads": answer[threads] for threads in ("1", "2")}
    first, *others = result
    for other in others:
        different = [key for key, bits in result[other].items() if result[first][key] != bits]
        assert len(result[other]) > 10
        assert not different, f"{other} differs from {first}: {different}"


def one_bit_off(function):
    """Return ``function`` with floating results one unit in the last place too large."""

    def wrong(*args, **kwargs):
        result = function(*args, **kwargs)
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        return torch.nextafter(result, torch.full_like(result, math.inf))

    return wrong


def make_wrong(monkeypatch):
    """Replace torch's library functions by those that are one bit off."""
    for place in (torch, torch.Tensor):
        for name in LIBRARY.split():
            if hasattr(place, name):
                monkeypatch.setattr(place, name, one_bit_off(getattr(place, name)))
    two = torch.tensor([4.0, 4.0])
    for wrong in (two.sqrt(), torch.sqrt(two), two**0.5, 4.0 ** (two / 8.0), two.rsqrt() * 4.0):
        assert 2.0 not in wrong.tolist()
    assert two.sum() != 8.0


@pytest.mark.parametrize("case", CASES, ids=get_name)
def test_a_library_that_is_one_bit_off_changes_no_step(case, monkeypatch):
    def result():
        return [digest(steps(case, dtype, [5, 1025])) for dtype in (torch.float32, torch.float64)]

    expected = result()
    make_wrong(monkeypatch)
    assert result() == expected


def test_a_library_that_is_one_bit_off_changes_no_block(monkeypatch):
    expected = blocks()
    make_wrong(monkeypatch)
    assert blocks() == expected


def test_a_sum_does_not_depend_on_its_pieces():
    values = uniform([3 * sums.WIDTH + 4097], torch.float64, 0)[0]
    result = []
    for width in (1, 2, 3, 4):
        added = sums.Sum(len(values), values.device)
        for piece in values.split(width * sums.WIDTH):
            added.add(piece)
        result.append(added.total().item())
    assert len(set(result)) == 1
    assert result[0] == pytest.approx(math.fsum(values.tolist()), rel=1e-12)
    assert result[0] != values.sum().item(), "a sum without roundings says nothing"


@pytest.mark.parametrize("numel", [0, 1, 2, 3, 5, 1023, 1025])
def test_every_element_is_added_once(numel):
    values = torch.arange(1.0, numel + 1, dtype=torch.float64)
    added = sums.Sum(numel, values.device)
    added.add(values)
    assert added.total().item() == numel * (numel + 1) / 2


def test_sums_of_what_is_special():
    largest = torch.finfo(torch.float64).max
    for given, expected in (([largest] * 3, math.inf), ([1.0, math.nan, 2.0], math.nan)):
        rows = torch.tensor(given, dtype=torch.float64)[:, None].repeat(1, 2)
        before = rows.clone()
        assert_same_bits("total", sums.total(rows), torch.full_like(rows[0], expected))
        assert_same_bits("what is added", rows, before)
