"""What ``memory``, ``explain``, ``info``, ``bench`` and ``train`` say is what the library does.

Faults tried by hand: extra bits beside states of another format; shapes counted once; layers not
joined; parameters not in their shape; another backend; the inverse ratio; no check of the clone.
"""

import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.command_line import fails, run
from helpers.models import make_model_small
from helpers.processes import ROOT
from torch.nn import Parameter

import fused_optim
from fused_optim.cli import bench, checkout, explain, machine

SHAPES = {"h.0.w": [70, 100], "h.1.w": [70, 100], "h.0.b": [70], "h.1.b": [70], "end": [3, 2, 1]}
PNG = b"\x89PNG"


def read(capsys, *arguments):
    """Return the JSON document of a command."""
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def model(tmp_path):
    """The path of a file of shapes."""
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(SHAPES))
    return path


def parameters(dtype):
    return [(name, Parameter(torch.zeros(shape, dtype=dtype))) for name, shape in SHAPES.items()]


def test_memory_is_that_of_the_library(model, capsys, tmp_path):
    """All parts together are what fused_optim.memory says, and none has what belongs to another."""
    plot = tmp_path / "out.png"
    options = ("--ema-decay", "0.9", "--set", "amsgrad=True", "--max-grad-norm", "1")
    found = read(capsys, "memory", "--model", model, *options, "--plot", plot)
    given = {"ema_decay": 0.9, "amsgrad": True, "max_grad_norm": 1.0}
    params = [param for _, param in parameters(torch.bfloat16)]
    numel = sum(param.numel() for param in params)
    assert (found["tensors"], found["elements"]) == (5, numel)
    assert len(found["formats"]) == 6 * 5
    for row in found["formats"]:
        formats = {"weights": row["weights"], "states": row["states"]}
        expected = fused_optim.memory(params, **given, **formats)
        assert row["total"] == expected.total
        assert (row["parameters"], row["gradients"]) == (2 * numel, 2 * numel)
        assert abs(row["moved"] - expected.moved) <= len(params)  # rounded to bytes for each
        without = fused_optim.memory(params, **{**given, "ema_decay": None}, **formats)
        assert row["ema"] == expected.states - without.states
        assert row["ema"] in (2 * numel, 4 * numel)
        bits = {"master": 4, "split": 2, "split24": 1, "kahan": 2}.get(row["weights"], 0)
        assert row["extra_bits"] == bits * numel
    assert plot.read_bytes().startswith(PNG)


def test_memory_names_what_an_optimizer_refuses(capsys):
    code, out, err = run(capsys, "memory", "--optimizer", "SparseAdam", "--model", "gpt2")
    assert (code, err) == (0, "")
    assert "not for plain, bf16; plain, int8; " in out
    message = fails(capsys, "memory", "--optimizer", "sparseadam", "--states", "int8")
    assert "stochastic rounding needs the index" in message


def test_explain_is_that_of_the_optimizer(model, capsys):
    arguments = ("--weights", "split", "--states", "int8", "--max-grad-norm", "1")
    found = read(capsys, "explain", "--model", model, "--device", "cpu", *arguments)
    options = {"weights": "split", "states": "int8", "max_grad_norm": 1.0}
    expected = fused_optim.AdamW(parameters(torch.bfloat16), **options).explain()
    assert [row["name"] for row in found["parameters"]] == list(SHAPES)
    for row, own in zip(found["parameters"], expected.rows, strict=True):
        assert row == json.loads(json.dumps(explain.document_of(own)))
        assert {"weights": "split", "dtype": "bfloat16", "rule": "adam"}.items() <= row.items()
    assert [row["launch"] for row in found["parameters"]] == [1, 1, 2, 2, 2]


def test_explain_joins_layers_and_shows_warnings(model, capsys):
    arguments = ("explain", "--model", model, "--device", "cpu")
    joined = run(capsys, *arguments)[1]
    assert "│ h.*.w (2) " in joined
    assert "│ h.*.b (2) " in joined
    assert "│ end " in joined
    assert "\n1 launch of the update kernel\n" in joined
    assert "\nwarning: exp_avg_sq is kept in torch.bfloat16 and cannot decay" in joined
    each = run(capsys, *arguments, "--each")[1]
    assert all(f"│ {name} " in each for name in SHAPES)


def test_info_names_the_backend_that_a_step_uses(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_OPTIM_CACHE", str(tmp_path))
    (tmp_path / "code").write_bytes(b"12345")
    found = read(capsys, "info")
    weight = torch.ones(3)
    weight.grad = torch.ones(3)
    optimizer = fused_optim.AdamW([weight])
    optimizer.step()
    (cpu,) = (device for device in found["devices"] if device["device"] == "cpu")
    assert cpu["backend"] == optimizer.backend_used
    assert cpu["backend"] not in cpu["why_not"]
    assert found["versions"]["torch"] == torch.__version__
    cache = found["caches"][0]
    assert (cache["path"], cache["files"], cache["size"]) == (str(tmp_path), 1, 5)
    monkeypatch.setenv("FUSED_OPTIM_CPU_LEVEL", "nonsense")
    assert "FUSED_OPTIM_CPU_LEVEL must be one of" in fails(capsys, "info")


def test_info_says_why_the_host_extension_is_not_used(monkeypatch):
    def refuse():
        raise ValueError("no exchange API")

    monkeypatch.setattr(machine.private_api, "dlpack_exchange_api", refuse)
    monkeypatch.setattr(machine.importlib, "import_module", lambda name: None)
    assert machine.host_extension_reason() == "no exchange API"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "fused_optim._host", None)
    assert machine.host_extension_reason().startswith("not built: ")


def test_bench_shows_ratios_of_those_asked_for(capsys, tmp_path):
    plot = tmp_path / "out.png"
    options = ("--smoke", "--model", "gpt-1m", "--rival", "torch foreach", "--threads", "2,1")
    found = read(capsys, "bench", *options, "--plot", plot)
    assert [(c["model"], c["threads"]) for c in found["comparisons"]] == [
        ("gpt-1m", 2),
        ("gpt-1m", 1),
    ]
    for comparison in found["comparisons"]:
        rows = {row["name"]: row for row in comparison["rows"]}
        ours = {"fused_optim native", "fused_optim reference"}
        assert rows.keys() == ours | {"torch foreach", "torch fused", "copy", "triad"}
        base = rows["torch fused"]["median"]
        for name in ours | {"torch foreach"}:
            assert rows[name]["ratio"] == rows[name]["median"] / base
    assert plot.read_bytes().startswith(PNG)


def test_bench_shows_a_table(capsys, monkeypatch):
    """With ratios written by hand."""
    quick = checkout.load_module("bench", "benchmarks.quick")
    rows = [
        {"name": name, "role": role, "median": median}
        for name, role, median in (("ours", "ours", 1.0), ("torch fused", "other", 4.0))
    ]
    results = [
        quick.Comparison("tiny-1000", 2, rows, {"apex": "not for cpu", "te": "not for cpu"}),
        quick.Comparison("gpt-1m", 2, [], {}, "too large"),
    ]
    case = SimpleNamespace(optimizer="AdamW")
    suite = SimpleNamespace(case=case, baseline="torch fused", models=["tiny-1000", "gpt-1m"])
    bench.print_ratios(results, suite)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line[0] == "│"]
    assert cells == [["ours", "2", "0.25", ""], ["torch fused", "2", "1.00", ""]]
    assert "not measured: gpt-1m: too large" in lines
    assert "not measured: apex, te: not for cpu" in lines


@pytest.mark.parametrize("command", ["bench", "train"])
def test_without_a_clone(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkout.fused_optim, "__file__", str(tmp_path / "fused_optim" / "x.py"))
    message = fails(capsys, command)
    assert f"{command} needs " in message
    assert "of the repository, which is not installed: run it in a clone" in message
    monkeypatch.chdir(ROOT)  # a clone whose package is installed elsewhere
    assert checkout.find_folder("benchmarks") == ROOT


def test_train_stops_at_the_end_of_a_step(capsys, monkeypatch, tmp_path):
    training = checkout.load_module("train", "examples.gpt.training")
    batch = training.Task.batch
    make_model_small(monkeypatch, checkout.load_module("train", "examples.gpt.model"))

    def interrupt(task, step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(task, step)

    monkeypatch.setattr(training.Task, "batch", interrupt)
    options = ("--steps", 3, "--text", ROOT / "examples/gpt/training.py", "--out", tmp_path)
    code, out, err = run(capsys, "train", *options, "--backend", "reference")
    assert (code, err) == (130, "")
    assert out.count("\n") == 1
    assert "stopped after step 2 of 3" in out
    code, out, err = run(capsys, "train", *options, "--backend", "reference", "--json")
    assert (code, out, err) == (130, "", "fused-optim: stopped by Ctrl-C\n")
