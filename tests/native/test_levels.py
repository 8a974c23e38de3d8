"""Levels of processors: the choice for this machine, and equal bits on all of them.

Faults tried by hand: a level that needs one flag less; a flag of the first processor taken for all;
float16 rounded half up where the level has no instruction for it.
"""

import platform
import sys

import numpy as np
import pytest
import torch
from native.kernels import HERE, PER_TENSOR, Case, covering, loaded, run

from ci.codegen.rules import RULES
from fused_optim.backends.kernel_runner import chunk_maps
from fused_optim.backends.native import levels
from fused_optim.backends.native.executor import GEOMETRY
from fused_optim.kernels.signatures import CommonOptions, CommonScalars

SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, 1.0]
needs_two_levels = pytest.mark.skipif(
    len(HERE) < 2, reason=f"this processor executes the code of one level alone, {HERE}"
)
NUMEL = 4096 + 77  # a whole chunk, a block and a tail


def columns(key):
    """Return values of every size for every column, special ones in the first chunk."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for dtype, block in zip(key.dtypes, key.blocks, strict=True):
        count = -(-NUMEL // block)
        if dtype.is_floating_point:
            values = torch.randn(count, generator=generator, dtype=torch.float64)
            values *= 10.0 ** torch.randint(-6, 4, (count,), generator=generator)
            some_places = torch.randperm(min(count, 4096), generator=generator)[: count // 50]
            choice = torch.randint(len(SPECIAL), some_places.shape, generator=generator)
            values[some_places] = torch.tensor(SPECIAL, dtype=torch.float64)[choice]
        else:
            values = torch.randint(1, 127, (count,), generator=generator)
        result.append(values.to(dtype))
    return result


def executed(case, level):
    """Return everything that a kernel writes for one row."""
    key, tensors = case.key, columns(case.key)
    firsts, spans = (torch.from_numpy(a) for a in chunk_maps([NUMEL], GEOMETRY))
    chunks = int(firsts[-1])
    table = torch.tensor([[NUMEL, 5, *[tensor.data_ptr() for tensor in tensors]]])
    scalars = torch.full(
        (len(CommonScalars._fields) + len(key.rule.scalars._fields),), 0.125, dtype=key.compute
    )
    # not skipped, average, keys; factor, limit, L2, L1
    scalars[: len(CommonScalars._fields)] = torch.tensor([0, 0.5, 123, 456, 0.75, 2.0, 0.25, 0.125])
    if case.kernel == "norm":
        out = torch.zeros(chunks, 2, dtype=torch.float64)
        run(loaded(case, level), table, firsts, spans, out, chunks, programs=chunks)
        return [out]
    if case.kernel == "reduce":
        out = torch.zeros(chunks, key.rule.reduction.num_sums, dtype=torch.float64)
        run(loaded(case, level), table, firsts, spans, scalars, out, programs=chunks)
        return [out]
    run(loaded(case, level), table, firsts, spans, scalars, programs=chunks)
    return tensors


def assert_all_same(ours, theirs):
    """Check that bits are equal, but for NaN and the remainders of NaN."""
    nans = [t.isnan() for t in theirs if t.is_floating_point() and t.itemsize > 1]
    for mine, other in zip(ours, theirs, strict=True):
        bits = [t.view(torch.uint8).view(*t.shape, t.itemsize) for t in (mine, other)]
        wrong = (bits[0] != bits[1]).any(-1)
        for is_nan in nans:
            if is_nan.shape == wrong.shape:
                wrong &= ~is_nan
        assert not wrong.any(), (mine[wrong][:5], other[wrong][:5])
        if mine.is_floating_point() and mine.itemsize > 1:
            assert torch.equal(mine.isnan(), other.isnan())
    assert not any(is_nan.all() for is_nan in nans)


ELEMENTS = [case for case in covering() if case.kernel not in ("prepare", "finalize")]


# on every level, with every width of an element; the other formats are made of these
WIDTHS = ("fp32", "bf16", "fp16", "fp64", "fp32-int8")


def others(index, all_of_them):
    """Return the levels to compare with the first: all, or one in turn, as compiling takes long."""
    return HERE[1:] if all_of_them else [HERE[1 + index % (len(HERE) - 1)]]


@needs_two_levels
@pytest.mark.parametrize("case", ELEMENTS, ids=str)
def test_all_levels_give_the_same_bits(case):
    """Compare every width on all levels, and every rule and format on two."""
    first = executed(case, HERE[0])
    widths = case.rule == "adam" and case.format in WIDTHS
    for level in others(ELEMENTS.index(case), widths):
        assert_all_same(executed(case, level), first)


def begun(rule, level):
    """Return everything that ``prepare`` and ``finalize`` write for 21 rows."""
    case = Case("prepare", rule, "fp32")
    key, generator = case.key, torch.Generator().manual_seed(0)
    rows, counters = 21, len(key.rule.scalar_state)
    counts = torch.arange(1, 1 + rows * max(counters, 1)).float()
    partials = torch.rand(130, 2, generator=generator, dtype=torch.float64)
    partials[:, 1] = 0
    hyper = torch.rand(
        3,
        len(CommonOptions._fields) + len(key.rule.hparams._fields),
        generator=generator,
        dtype=torch.float64,
    )
    hyper[:, -1] = hyper[:, 8] = torch.tensor([0, 7, 1 << 40])
    groups = torch.stack([torch.arange(rows) % 3, torch.arange(rows)], 1).int()
    scalars = torch.zeros(rows, len(CommonScalars._fields) + len(key.rule.scalars._fields))
    report, one, zero = torch.zeros(3, dtype=torch.float64), torch.ones(1), torch.zeros(1)
    addresses = counts.data_ptr() + 4 * torch.arange(rows * counters)
    tables = [*([addresses] if counters else []), groups, hyper, one, zero, scalars, report]
    run(loaded(case, level), partials, *tables, len(partials), rows, programs=2)
    result = [counts, scalars.clone(), report]
    if rule in PER_TENSOR:
        table, chunks = torch.full((rows, 2 + len(key.dtypes)), 1000), 70
        firsts = torch.arange(rows + 1) * chunks
        num_sums = key.rule.reduction.num_sums
        sums = torch.rand(rows * chunks, num_sums, generator=generator, dtype=torch.float64)
        run(
            loaded(case._replace(kernel="finalize"), level),
            table,
            firsts,
            sums,
            scalars,
            programs=rows,
        )
        result.append(scalars)
    return result


# rules share the functions that form their scalars
BEGIN = list({(r.form_scalars, r.reduction): name for name, r in RULES.items()}.values())


@needs_two_levels
@pytest.mark.parametrize("rule", BEGIN)
def test_begin_and_finish(rule):
    first = begun(rule, HERE[0])
    for level in others(BEGIN.index(rule), rule in PER_TENSOR):
        for mine, other in zip(begun(rule, level), first, strict=True):
            assert torch.equal(torch.nan_to_num(mine), torch.nan_to_num(other))


# ---- which level this machine has

V3 = " ".join(sorted(levels.V3)) + " lm vmx"


def machine(monkeypatch, tmp_path, flags, name="x86_64", system="linux", processors=2):
    """Imitate a machine with the given name, system and flags."""
    text = "".join(f"processor\t: {i}\nflags\t\t: {flags}\n\n" for i in range(processors))
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(platform, "machine", lambda: name)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(levels, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv(levels.VARIABLE, raising=False)
    levels.levels.cache_clear()


@pytest.fixture(autouse=True)
def _clear():
    yield
    levels.levels.cache_clear()


def test_the_best_level_is_taken(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, V3)
    assert levels.levels() == ("x86-64-v3", "x86-64-v2")
    assert levels.level() == "x86-64-v3"
    machine(monkeypatch, tmp_path, " ".join(levels.V4))
    assert levels.level() == "x86-64-v4"
    machine(monkeypatch, tmp_path, " ".join(levels.V4 - {"avx512vl"}))
    assert levels.level() == "x86-64-v3"


def test_a_flag_that_one_processor_lacks_is_not_there(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, V3)
    text = levels.CPUINFO.read_text()
    levels.CPUINFO.write_text(text + text.split("\n\n")[0].replace(" avx2", "") + "\n")
    assert levels.level() == "x86-64-v2"


@pytest.mark.parametrize(
    ("name", "system", "flags", "reason"),
    [
        ("x86_64", "darwin", V3, "runs on Linux, not on darwin"),
        ("riscv64", "linux", V3, "no code for riscv64"),
        ("x86_64", "linux", "sse2 lm", "this one lacks cx16"),
        ("x86_64", "linux", "", "this one lacks cx16"),
    ],
)
def test_where_there_is_none_the_reason_is_said(monkeypatch, tmp_path, name, system, flags, reason):
    machine(monkeypatch, tmp_path, flags, name, system)
    with pytest.raises(levels.NoNativeCode, match=reason):
        levels.level()


def test_the_environment_chooses_among_them(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, V3)
    monkeypatch.setenv(levels.VARIABLE, "x86-64-v2")
    assert levels.level() == "x86-64-v2"
    monkeypatch.setenv(levels.VARIABLE, "x86-64-v4")
    with pytest.raises(ValueError, match=r"must be one of x86-64-v3, x86-64-v2 here.*'x86-64-v4'"):
        levels.level()


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="/proc/cpuinfo has a line of flags on x86-64 alone"
)
def test_the_flags_are_those_of_numpy():
    """Guard against flags read wrongly: numpy asks the processor itself."""
    features = np._core._multiarray_umath.__cpu_features__
    flags = levels.cpu_flags(levels.CPUINFO.read_text())
    for ours, theirs in (("avx2", "AVX2"), ("avx512bw", "AVX512BW"), ("f16c", "F16C")):
        assert (ours in flags) == features[theirs]
