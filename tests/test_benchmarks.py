"""The benchmarks run, their bytes are as committed, and their results become a report.

Tried by hand: variants in the same order in every round, or the rare ones first; threads set in
torch alone, or not set back after an error; each step of the goals' arithmetic changed (other
number of threads, torch's fastest for its fused step, the last or the best of several, the inverse,
>= for >); two tensors of the demo's model exchanged; 0 threads allowed; a read of the gradient not
counted; the formula of bytes without the writes.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parent.parent
SUITES = {"step", "formats", "host", "dtensors", "first step", "training", "muon"}
OPTIMIZERS = {"AdamW", "Adam", "SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax"}
MODULES = (
    "bytes_moved",
    "conftest",
    "goals",
    "interleaved",
    "report",
    "shapes",
    "threads",
    "variants",
)


@pytest.fixture(scope="module")
def benchmarks():
    """Import the modules of ``benchmarks``."""
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in MODULES}
    return SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def counts(benchmarks):
    return list(benchmarks.bytes_moved.counts())


def test_no_byte_count_regresses(benchmarks, counts):
    """Guard against more bytes per step: unlike times, they are a property of the code."""
    found = {count.name: count.planned for count in counts}
    committed = json.loads(benchmarks.bytes_moved.PATH.read_text())
    lines = list(benchmarks.bytes_moved.differences(found, committed))
    assert not lines, "\n".join(
        [*lines, "as it should be? python -m benchmarks.bytes_moved --write"]
    )


def test_bytes_are_those_of_the_tensors(benchmarks, counts):
    """The columns that reach a backend are the tensors in parameters and state: no copies."""
    assert {count.name.split(",")[0] for count in counts} == set(benchmarks.variants.OPTIMIZERS)
    assert not [count for count in counts if count.planned != count.implied]


def test_the_formula_gives_the_known_floors(benchmarks):
    bytes_moved = benchmarks.bytes_moved
    for width, reads, writes, floor in (
        (4, 1, 0, 28),  # AdamW in fp32
        (4, 2, 0, 32),  # clipped in the update
        (4, 3, 1, 40),  # clip_grad_norm_, then the update
        (2, 2, 0, 16),  # AdamW in bf16
        (2, 3, 1, 20),
    ):
        columns = bytes_moved.Columns(width, width, 2 * width)
        assert bytes_moved.moved(columns, reads, writes) == floor
    assert bytes_moved.moved(bytes_moved.Columns(4, 4, 8), 2, measured=True) == 48  # LAMB


def test_wrapped_states_count_in_full(benchmarks):
    """Guards the bytes of libraries whose states are tensors of tensors: codes and scales."""

    class Wrapper(torch.Tensor):
        def __tensor_flatten__(self):
            return ["codes", "scales"], None

        @classmethod
        def __torch_dispatch__(cls, *arguments):
            raise NotImplementedError

    flat = torch.Tensor._make_wrapper_subclass(Wrapper, (64,))
    for wrapper in (flat, SimpleNamespace(signed=True, rest=None)):
        wrapper.codes, wrapper.scales = torch.zeros(64, dtype=torch.uint8), torch.zeros(2)
        assert benchmarks.bytes_moved.stored(wrapper) == 64 + 8
    assert benchmarks.bytes_moved.stored(torch.tensor(3.0)) == 0  # a count of steps


def test_differences_are_shown_both_ways(benchmarks):
    lines = benchmarks.bytes_moved.differences({"a": 5, "b": 1, "c": 1}, {"a": 4, "b": 1, "d": 1})
    assert list(lines) == [
        "a: 4 bytes committed, 5 counted",
        "c: None bytes committed, 1 counted",
        "d: 1 bytes committed, None counted",
    ]


def test_models_have_their_published_sizes(benchmarks):
    sizes = {
        "gpt2-124m": (148, 124_439_808),
        "gpt-0.8m": (50, 842_240),
        "resnet-50": (161, 25_557_032),
        "vit-b": (152, 86_567_656),
        "vit-l": (296, 304_326_632),
        "llama-3.2-1b": (146, 1_235_814_400),
        "llama-3.1-8b": (291, 8_030_261_248),
        "llama-3.1-70b": (723, 70_553_706_496),
    }
    counted = {"tiny-1000": 1000, "detector-465": 465, "moe-10000": 10_000, "one-50m": 1}
    shapes = {n: m.tensors(m.layers) for n, m in benchmarks.shapes.MODELS.items()}
    for name, (tensors, elements) in sizes.items():
        assert (len(shapes[name]), benchmarks.shapes.count(shapes[name])) == (tensors, elements)
    assert {name: len(shapes[name]) for name in counted} == counted


def test_models_are_cut_to_fit(benchmarks):
    model = benchmarks.shapes.MODELS["llama-3.1-70b"]
    layers = model.fitting(10e9)
    sizes = [benchmarks.shapes.count(model.tensors(n)) for n in (layers, layers + 1)]
    assert sizes[0] <= 10e9 < sizes[1]
    assert model.fitting(1e9) is None
    assert benchmarks.shapes.MODELS["one-50m"].fitting(5e7) == 0


def test_groups_are_dealt_out(benchmarks):
    parts = list(benchmarks.shapes.grouped([(i,) for i in range(11)], 3))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert [shape for part in parts for shape in part] == [(i,) for i in range(11)]


def test_the_demo_is_timed(benchmarks):
    """The list of tensors is that of the model that the demo trains."""
    gpt = importlib.import_module("examples.gpt.model")
    shapes = [tuple(param.shape) for param in gpt.GPT(gpt.Shape()).parameters()]
    assert benchmarks.shapes.MODELS["gpt-1m"].tensors(4) == shapes


def test_runs_are_interleaved(benchmarks):
    """Each as often as asked, in changing order, and the rare ones not all at one end."""
    runs = [40, 40, 4]
    order = benchmarks.interleaved.interleave(runs)
    assert [order.count(i) for i in range(3)] == runs
    rare = [at for at, i in enumerate(order) if i == 2]
    assert all(len(order) * q / 4 <= at < len(order) * (q + 1) / 4 for q, at in enumerate(rare))
    pairs = {tuple(order[at : at + 2]) for at in range(0, 40, 2)}
    assert {(0, 1), (1, 0)} <= pairs
    assert benchmarks.interleaved.interleave(runs, seed=1) != order


def test_slow_variants_run_less_often(benchmarks):
    interleaved = benchmarks.interleaved
    expected = [interleaved.MAX_RUNS, 10, interleaved.MIN_RUNS]
    assert interleaved.runs_of([1e-6, 0.1, 100.0], 3.0) == expected
    assert interleaved.runs_of([1e-6, 100.0], 0.0) == [1, 1]


def test_the_number_of_rounds_can_be_chosen(benchmarks):
    interleaved, ran = benchmarks.interleaved, []
    variants = [
        interleaved.Variant(name, "ours", lambda name=name: ran.append(name)) for name in "ab"
    ]
    watch = interleaved.Stopwatch(lambda done, runs: None)
    interleaved.compare(watch, variants, lambda: None, 10.0, rounds=2)
    assert sorted(ran) == ["a"] * 3 + ["b"] * 3  # one more, for the estimate
    assert [len(found["durations"]) for found in watch.extra_info["variants"]] == [2, 2]


def test_threads_are_set_and_set_back(benchmarks, monkeypatch):
    """In torch and in every OpenMP library of the process."""
    threads = benchmarks.threads
    before, found = torch.get_num_threads(), threads.openmp_libraries()
    asked = []
    copy = SimpleNamespace(omp_set_num_threads=asked.append)  # as another package brings it
    monkeypatch.setattr(threads, "openmp_libraries", lambda: [*found, copy])

    def counts():
        return {torch.get_num_threads(), *(one.omp_get_max_threads() for one in found)}

    with threads.threads(3):
        assert counts() == {3}
    with pytest.raises(KeyError), threads.threads(5):
        raise KeyError
    assert counts() == {before}
    assert asked == [3, before, 5, before]
    assert found or sys.platform != "linux"


def test_numbers_of_threads(benchmarks):
    counts = benchmarks.conftest.counts
    assert counts("2,1,2") == [2, 1]
    for text in ("0", "1,", "two", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"numbers >= 1 .* got '{text}'"):
            counts(text)


def test_the_clock_of_a_device_waits_and_is_in_seconds(benchmarks, monkeypatch):
    waited = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def synchronize(self):
            waited.append(self)

        def elapsed_time(self, end):
            assert waited == [end]
            return 250.0  # milliseconds

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=Event))
    start, end = benchmarks.interleaved.Instant(), benchmarks.interleaved.Instant()
    assert end - start == 0.25


def test_what_is_not_there_says_why(benchmarks):
    variants = benchmarks.variants
    assert variants.why_not_ours("AdamW", "fp32", "reference", "cpu") is None
    assert "backend must be one of" in variants.why_not_ours("AdamW", "fp32", "nothing", "cpu")
    assert "fused" in variants.why_not_torch("RMSprop", "torch fused", "fp32", "cpu")
    libraries = {library.name: i for i, library in enumerate(variants.THIRD_PARTY)}
    assert variants.why_not_third_party(libraries["apex"], "cpu") == "not for cpu"


def test_the_page_has_the_committed_figures(benchmarks):
    content, rows = benchmarks.report.read(ROOT / "benchmarks" / "results" / "cpu.json")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "\n".join(benchmarks.report.summary(content, rows)) in page
    assert content["datetime"][:10] in page
    assert content["machine_info"]["command"] in page


def test_every_benchmark_runs_once(benchmarks, tmp_path):
    """Guards the benchmarks and their report against rot.

    One test, for the workers of xdist would each make the results that two tests share.
    """
    path = tmp_path / "smoke.json"
    run_once(path)
    content, rows = benchmarks.report.read(path)
    check_origin(content)
    check_rows(benchmarks, rows)
    pytest.importorskip("matplotlib")
    # half of the time of a picture
    with mock.patch("matplotlib.layout_engine.ConstrainedLayoutEngine.execute"):
        assert benchmarks.report.main([str(path)]) == 0
    check_report(path, content, rows)


def run_once(path):
    """As CI and users do: in a process of its own, where Triton compiles."""
    # nothing is measured in a worker of xdist, which that process is not
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env.pop("TRITON_INTERPRET", None)
    env["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--smoke", f"--benchmark-json={path}"]
    command += ["--threads=2,1", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def check_origin(content):
    assert content["machine_info"].keys() >= {"cpu", "cores", "threads", "versions", "command"}
    assert "node" not in content["machine_info"]  # the machine's name is nobody's business
    assert content["commit_info"]["id"]


def check_rows(benchmarks, rows):
    """Every suite, format and optimizer; in every comparison ours, torch's and the roofline."""
    assert {row["suite"] for row in rows} == SUITES
    for group in benchmarks.report.by_group(rows, "step").values():
        names = [row["name"] for row in group]
        assert {"fused_optim native", "fused_optim reference", "copy", "triad"} <= set(names), names
        assert any(row["role"] == "other" for row in group), names
        assert all(row["rounds"] == 1 and row["median"] > 0 for row in group)
    steps = [row for row in rows if row["suite"] == "step"]
    moved = {
        row["name"]: row["bytes"] / row["parameters"]
        for row in steps
        if (row["optimizer"], row["format"], row["clip"]) == ("AdamW", "fp32", True)
    }
    assert (moved["fused_optim native"], moved["torch fused"]) == (32, 40)
    assert {row["optimizer"] for row in steps} == OPTIMIZERS
    assert {row["threads"] for row in steps} == {1, 2}
    formats = [row for row in rows if row["suite"] == "formats"]
    assert {r["format"] for r in formats if r["role"] == "ours"} == set(benchmarks.variants.FORMATS)
    assert sum(row["suite"] == "host" for row in rows) == 4 * 6
    assert {r["backend"] for r in rows if r["suite"] == "first step"} == {"native"}


def check_report(path, content, rows):
    """Every variant, where it was measured, the ratio, who was absent, and the plots."""
    page = path.with_suffix(".md").read_text()
    for row in rows:
        name = f"{row['name']}, native" if row["suite"] == "first step" else row["name"]
        assert f"| {name} |" in page
    for text in (content["machine_info"]["cpu"], torch.__version__, "--smoke", "not for cpu"):
        assert text in page
    assert "steps with 2 threads and 1 thread" in page
    ours = next(row for row in rows if row["role"] == "ours" and row["suite"] == "step")
    group = [row for row in rows if row["group"] == ours["group"]]
    other = min(row["median"] for row in group if row["role"] == "other")
    assert f"| {ours['median'] / other:.2f} |" in page
    for plot in ("tensors", "steps", "optimizers", "bandwidth", "memory"):
        picture = path.with_name(f"smoke-{plot}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"({picture.name})" in page


def test_reasons_are_sections_of_the_page(benchmarks):
    """Guards the links of the report: GitHub derives an anchor from the heading."""
    goals = benchmarks.goals
    lines = (ROOT / "benchmarks" / "results" / goals.PAGE).read_text().splitlines()
    headings = [line[4:] for line in lines if line.startswith("### ")]
    assert headings == [goals.BYTES, goals.SMALL, goals.CODES, goals.NEAREST, goals.HOST]
