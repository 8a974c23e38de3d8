"""The benchmarks run, their bytes are as committed, and their results become a report."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parent.parent
OPTIMIZERS = {"AdamW", "Adam", "SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax"}
MODULES = ("goals", "race", "report", "shapes", "traffic", "variants")


@pytest.fixture(scope="module")
def benchmarks():
    """The modules of the benchmarks, imported as ``python -m`` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        modules = {name: importlib.import_module(f"benchmarks.{name}") for name in MODULES}
        yield SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def counts(benchmarks):
    return list(benchmarks.traffic.counts())


def test_no_byte_count_regresses(benchmarks, counts):
    """What an optimizer moves is a property of the code, so unlike a time it can be held to."""
    found = {count.name: count.planned for count in counts}
    committed = json.loads(benchmarks.traffic.PATH.read_text())
    lines = list(benchmarks.traffic.differences(found, committed))
    assert not lines, "\n".join([*lines, "as it should be? python -m benchmarks.traffic --write"])


def test_bytes_are_those_of_the_tensors(benchmarks, counts):
    """The columns that reach a backend are the tensors in parameters and state: no copies."""
    assert {count.name.split(",")[0] for count in counts} == set(benchmarks.variants.OPTIMIZERS)
    assert not [count for count in counts if count.planned != count.implied]


def test_the_formula_gives_the_known_floors(benchmarks):
    traffic = benchmarks.traffic
    for width, reads, writes, floor in (
        (4, 1, 0, 28),  # AdamW in fp32
        (4, 2, 0, 32),  # clipped in the update
        (4, 3, 1, 40),  # clip_grad_norm_, then the update
        (2, 2, 0, 16),  # AdamW in bf16
        (2, 3, 1, 20),
    ):
        columns = traffic.Columns(width, width, 2 * width)
        assert traffic.moved(columns, reads, writes) == floor
    assert traffic.moved(traffic.Columns(4, 4, 8), 2, measured=True) == 48  # LAMB


def test_wrapped_states_count_in_full(benchmarks):
    """Guards the bytes of rivals whose states are tensors of tensors: codes and scales."""

    class Wrapper(torch.Tensor):
        def __tensor_flatten__(self):
            return ["codes", "scales"], None

        @classmethod
        def __torch_dispatch__(cls, *arguments):
            raise NotImplementedError

    flat = torch.Tensor._make_wrapper_subclass(Wrapper, (64,))
    for wrapper in (flat, SimpleNamespace(signed=True, rest=None)):
        wrapper.codes, wrapper.scales = torch.zeros(64, dtype=torch.uint8), torch.zeros(2)
        assert benchmarks.traffic.stored(wrapper) == 64 + 8
    assert benchmarks.traffic.stored(torch.tensor(3.0)) == 0  # a count of steps


def test_differences_are_shown_both_ways(benchmarks):
    lines = benchmarks.traffic.differences({"a": 5, "b": 1, "c": 1}, {"a": 4, "b": 1, "d": 1})
    assert list(lines) == [
        "a: 4 bytes committed, 5 counted",
        "c: None bytes committed, 1 counted",
        "d: 1 bytes committed, None counted",
    ]


def test_models_have_their_published_sizes(benchmarks):
    sizes = {
        "gpt2-124m": (148, 124_439_808),
        "resnet-50": (161, 25_557_032),
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


def test_turns_are_mixed(benchmarks):
    """Each as often as asked, in changing order, and the rare ones not all at one end."""
    turns = [40, 40, 4]
    order = benchmarks.race.in_turns(turns)
    assert [order.count(i) for i in range(3)] == turns
    rare = [at for at, i in enumerate(order) if i == 2]
    assert all(len(order) * q / 4 <= at < len(order) * (q + 1) / 4 for q, at in enumerate(rare))
    pairs = {tuple(order[at : at + 2]) for at in range(0, 40, 2)}
    assert {(0, 1), (1, 0)} <= pairs
    assert benchmarks.race.in_turns(turns, seed=1) != order


def test_slow_variants_take_fewer_turns(benchmarks):
    race = benchmarks.race
    assert race.turns_of([1e-6, 0.1, 100.0], 3.0) == [race.MOST, 10, race.LEAST]
    assert race.turns_of([1e-6, 100.0], 0.0) == [1, 1]


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
    start, end = benchmarks.race.Instant(), benchmarks.race.Instant()
    assert end - start == 0.25


def test_what_is_not_there_says_why(benchmarks):
    variants = benchmarks.variants
    assert variants.why_not_ours("AdamW", "fp32", "reference", "cpu") is None
    assert "backend must be one of" in variants.why_not_ours("AdamW", "fp32", "nothing", "cpu")
    assert "fused" in variants.why_not_torch("RMSprop", "torch fused", "fp32", "cpu")
    rivals = {rival.name: i for i, rival in enumerate(variants.RIVALS)}
    assert variants.why_not_rival(rivals["apex"], "cpu") == "not for cpu"


def step_row(optimizer, name, median, model="one-50m"):
    facts = {"suite": "step", "model": model, "format": "fp32", "clip": True}
    return {**facts, "optimizer": optimizer, "name": name, "median": median}


def host_row(tensors, median, groups=1, name="fused_optim, no launches"):
    facts = {"suite": "host", "tensors": tensors, "groups": groups, "tensor_allocations": 4}
    return {**facts, "name": name, "median": median}


def test_goals_are_met_or_missed(benchmarks):
    """A goal of several parts is met if all are; the best of torch's is what counts."""
    rows = [
        step_row("AdamW", "fused_optim compiled", 0.80),
        step_row("AdamW", "torch fused", 1.0),
        step_row("AdamW", "torch foreach", 0.5),  # no rival: the goal names the fused one
        step_row("SGD", "fused_optim compiled", 0.95),
        step_row("SGD", "torch fused", 1.0),
        step_row("RMSprop", "fused_optim compiled", 0.2),
        step_row("RMSprop", "torch for-loop", 9.0),
        step_row("RMSprop", "torch foreach", 1.0),
        step_row("RMSprop", "bitsandbytes", 0.1),
        host_row(1000, 3e-4),
        host_row(1000, 2.9e-4, groups=100),
        host_row(1000, 3e-3, name="torch fused, no kernels"),
        host_row(10_000, 3e-3),
        host_row(100, 3e-5),
    ]
    goals = benchmarks.goals
    page = list(goals.lines(rows))
    head = "compiled / torch fused + clip: one-50m"
    assert f"| {head} | 0.85 | AdamW 0.80, SGD 0.95 | missed (2) |" in page
    assert "| compiled / torch's fastest + clip: one-50m | 0.25 | RMSprop 0.20 | met |" in page
    assert "| host, 1,000 tensors: ms | 0.40 | 1 group 0.30 | met |" in page
    assert (
        "| host, 1,000 tensors: part of torch's | 0.07 | of no kernels 0.10 | missed (1) |" in page
    )
    assert "| host: µs for each further tensor | 0.40 | 1 group 0.30 | met |" in page
    assert "| host, 1,000 tensors: beside 1 group | 1.10 | 100 groups 0.97 | met |" in page
    assert any(
        line.startswith("| host: further allocations") and "| 1 group 0 | met |" in line
        for line in page
    )
    assert f"1. {goals.HOST}" in page
    assert f"2. {goals.COMPILED}" in page
    tables = [line for line in page if line.startswith("|")]
    assert len(tables) == 2 + 7, "only what was measured"
    assert not list(goals.lines([]))


def test_the_readme_has_the_committed_figures(benchmarks):
    """Of clipped AdamW, beside torch's fused step."""
    content, rows = benchmarks.report.read(ROOT / "benchmarks" / "results" / "cpu.json")
    readme = (ROOT / "README.md").read_text()
    times = {
        (row["model"], row["name"]): row["median"]
        for row in rows
        if row["suite"] == "step" and row["optimizer"] == "AdamW"
    }
    models = ("one-50m", "gpt2-124m", "tiny-1000")
    for name in ("fused_optim compiled", "fused_optim reference", "DeepSpeed", "bitsandbytes"):
        shares = [times[model, name] / times[model, "torch fused"] for model in models]
        assert "| " + " | ".join(f"{share:.2f}" for share in shares) + " |" in readme, name
    trainings = benchmarks.report.by_group(rows, "training").values()
    for group in trainings:
        medians = {row["name"]: row["median"] for row in group}
        share = medians["torch fused"] / medians["fused_optim compiled"]
        assert f"{share:.2f} ({group[0]['model'][4:-1]} M" in readme.replace(" parameters", "")
    assert content["datetime"][:10] in readme


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
    assert benchmarks.report.main([str(path)]) == 0
    check_report(path, content, rows)


def run_once(path):
    """As CI and users do: in a process of its own, where Triton compiles."""
    # nothing is measured in a worker of xdist, which that process is not
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env.pop("TRITON_INTERPRET", None)
    env["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--smoke", f"--benchmark-json={path}"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def check_origin(content):
    assert content["machine_info"].keys() >= {"cpu", "cores", "threads", "versions", "command"}
    assert "node" not in content["machine_info"]  # the machine's name is nobody's business
    assert content["commit_info"]["id"]


def check_rows(benchmarks, rows):
    """Every suite and optimizer; in every race ours, torch's and the roofline."""
    assert {row["suite"] for row in rows} == {"step", "host", "training"}
    for group in benchmarks.report.by_group(rows, "step").values():
        names = [row["name"] for row in group]
        assert {"fused_optim reference", "copy", "triad"} <= set(names), names
        assert any(row["role"] == "rival" for row in group), names
        assert all(row["rounds"] == 1 and row["median"] > 0 for row in group)
    optimizers = {row["optimizer"] for row in rows if row["suite"] == "step"}
    assert optimizers == OPTIMIZERS
    formats = {row["format"] for row in rows if row["suite"] == "step"}
    assert formats == set(benchmarks.variants.FORMATS)
    assert sum(row["suite"] == "host" for row in rows) >= 4 * 4


def check_report(path, content, rows):
    """Every variant, where it was measured, the ratio, who was absent, and the plots."""
    page = path.with_suffix(".md").read_text()
    for name in dict.fromkeys(row["name"] for row in rows):
        assert f"| {name} |" in page
    for text in (content["machine_info"]["cpu"], torch.__version__, "--smoke", "not for cpu"):
        assert text in page
    ours = next(row for row in rows if row["role"] == "ours" and row["suite"] == "step")
    group = [row for row in rows if row["group"] == ours["group"]]
    rival = min(row["median"] for row in group if row["role"] == "rival")
    assert f"| {ours['median'] / rival:.2f} |" in page
    for plot in ("tensors", "parameters", "bandwidth", "memory"):
        picture = path.with_name(f"smoke-{plot}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"({picture.name})" in page
