"""The example runs, resumes where it stopped, and fails when an optimizer is not torch's."""

import importlib
import math
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.models import make_model_small

import fused_optim

ROOT = Path(__file__).parent.parent
MODULES = ("__main__", "checkpoint", "corpus", "model", "report", "training", "verdict")
SETTINGS = {"lr": 2e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
STEPS = 40


@pytest.fixture(scope="module")
def example():
    """Import the modules of ``examples.gpt``."""
    found = {name: importlib.import_module(f"examples.gpt.{name}") for name in MODULES}
    return SimpleNamespace(**found, main=found["__main__"].main)


def reference(optimizer):
    """``optimizer`` without the interpreter of Triton, which is slow."""
    return lambda groups, **options: optimizer(groups, backend="reference", **options)


def tiny(example, optimizer=fused_optim.AdamW, seed=0, settings=SETTINGS):
    """A task of a tiny model, and the three runs before their first step."""
    shape = example.model.Shape(context=16, layers=1, heads=2, width=16)
    corpus = example.corpus.Corpus.split(ROOT.joinpath("examples/gpt/training.py").read_bytes(), 16)
    task = example.training.Task(
        corpus, STEPS, seed, torch.device("cpu"), shape, validation_size=8, evaluations=4
    )
    runs = example.training.start(task, torch.optim.AdamW, reference(optimizer), settings)
    return task, runs


def judged(example, task, runs, first=0):
    list(example.training.train(task, runs, first, STEPS))
    return example.verdict.judge(runs, first)


def tenth_more_decay(groups, **options):
    groups = [{**group, "weight_decay": 1.1 * group["weight_decay"]} for group in groups]
    return fused_optim.AdamW(groups, **options)


def decay_of_all(groups, **options):
    groups = [{**group, "weight_decay": 0.1} for group in groups]
    return fused_optim.AdamW(groups, **options)


def other_beta(groups, betas, **options):
    return fused_optim.AdamW(groups, betas=(betas[0], 0.989), **options)


def other_eps(groups, **options):
    return fused_optim.AdamW(groups, eps=1e-6, **options)


def no_clip(groups, max_grad_norm, **options):
    return fused_optim.AdamW(groups, **options)


class NoBiasCorrection(fused_optim.AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            counts = [self.state[p]["step"].item() for p in group["params"] if p in self.state]
            first, second = (1 - beta ** (max(counts, default=0) + 1) for beta in group["betas"])
            group["lr"] *= first / second**0.5
        return super().step(closure)


class NoStep(fused_optim.AdamW):
    def step(self, closure=None):
        pass


@pytest.mark.parametrize("seed", range(2))
def test_the_verdict_accepts_rounding(example, seed):
    verdict = judged(example, *tiny(example, seed=seed))
    assert verdict.within_rounding, verdict


@pytest.mark.parametrize(
    "wrong",
    [tenth_more_decay, decay_of_all, other_beta, other_eps, no_clip, NoBiasCorrection, NoStep],
)
def test_the_verdict_rejects_errors(example, wrong):
    verdict = judged(example, *tiny(example, wrong))
    assert not verdict.within_rounding, verdict


def test_the_verdict_rejects_nan(example):
    task, runs = tiny(example)
    with torch.no_grad():
        runs.fused.model.norm.weight[0] = torch.nan
    assert not judged(example, task, runs).within_rounding


def curves(losses, validation=None):
    """Return a run with these losses, and the loss of the validation by number of steps."""
    return SimpleNamespace(
        losses=losses, validation={14: 2.0} if validation is None else validation
    )


# the control parts by 1e-3 in the second step alone; the curves of torch and the other are these
CURVES = {
    "within the margin in a later step": ([2, 2, 2.03, 2], {14: 2.0}, True, 13),
    "past the margin": ([2, 2, 2.034, 2], {14: 2.0}, False, 13),
    "before the control parts": ([2.0001, 2, 2.03, 2], {14: 2.0}, False, 11),
    "in the validation alone": ([2, 2, 2, 2], {12: 2.0, 14: 2.04}, False, 14),
    "in the validation before the control parts": ([2, 2, 2, 2], {11: 2.0001, 14: 2.0}, False, 11),
    "NaN": ([2, 2, 2, math.nan], {14: 2.0}, False, 14),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_verdict_is_the_worst_point_in_its_own_unit(example, name):
    """Guard against an allowance of another step, and the largest difference for the worst."""
    losses, validation, expected, step = CURVES[name]
    fused = curves(losses, validation)
    torchs = curves([2, 2, 2, 2], dict.fromkeys(validation, 2.0))
    control = curves([2, 2.001, 2, 2], {})
    trio = example.training.Trio(torch=torchs, fused=fused, control=control)
    verdict = example.verdict.judge(trio, 10)
    assert (verdict.within_rounding, verdict.step) == (expected, step), verdict


def test_the_verdict_allows_a_rounding_of_a_small_loss(example):
    """Guard against a unit that shrinks with the loss: logits are of order one."""
    eps = torch.finfo(torch.float32).eps
    for roundings, expected in ((30, True), (34, False)):
        runs = [curves([1e-3 + k * eps], {1: 1e-3}) for k in (0, roundings, 0)]
        verdict = example.verdict.judge(example.training.Trio(*runs), 0)
        assert verdict.within_rounding == expected, verdict


@pytest.mark.parametrize("writer", ["torch", "fused"])
def test_each_optimizer_goes_on_from_the_other(example, writer):
    """Guards the state that a checkpoint carries: a lost moment or count parts the curves."""
    task, before = tiny(example)
    list(example.training.train(task, before, 0, STEPS // 2))
    task, after = tiny(example)
    for run in after:
        run.load_state_dict(getattr(before, writer).state_dict())
    verdict = judged(example, task, after, STEPS // 2)
    assert verdict.within_rounding, verdict
    list(example.training.train(task, before, STEPS // 2, STEPS))
    resumed, uninterrupted = getattr(after, writer), getattr(before, writer)
    for ours, theirs in zip(
        resumed.model.parameters(), uninterrupted.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def run_main(example, tmp_path, *options):
    arguments = ("--backend", "reference", "--out", str(tmp_path), *map(str, options))
    return example.main(arguments)


def assert_same(ours, theirs):
    """Compare nested state_dicts bit for bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


def test_interrupted_and_resumed(example, tmp_path, monkeypatch, capsys):
    """Ctrl-C in a step, and then --resume, give the bits of the run that was left alone."""
    make_model_small(monkeypatch, example.model)
    monkeypatch.setattr(example.report, "SAMPLE_LENGTH", 3)
    whole, part, resumed = (tmp_path / name for name in ("whole.pt", "part.pt", "resumed.pt"))
    assert run_main(example, tmp_path, "--steps", 4, "--seed", 7, "--save", whole) == 0

    batch = example.training.Task.batch

    def interrupt(task, step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(task, step)

    with monkeypatch.context() as patch:
        patch.setattr(example.training.Task, "batch", interrupt)
        assert run_main(example, tmp_path, "--steps", 4, "--seed", 7, "--save", part) == 130
    assert torch.load(part)["step"] == 2
    assert "stopped after step 2 of 4" in capsys.readouterr().out
    assert run_main(example, tmp_path, "--resume", part, "--save", resumed) == 0
    assert_same(torch.load(resumed), torch.load(whole))


def test_as_a_script(example, tmp_path, monkeypatch, capsys):
    """Run it as a user does: picture, table and a checkpoint that plain torch loads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example.report, "SAMPLE_LENGTH", 3)
    monkeypatch.setattr(sys, "argv", ["examples.gpt", "--steps", "2", "--save", "gpt.pt"])
    monkeypatch.delitem(sys.modules, "examples.gpt.__main__")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("examples.gpt", run_name="__main__")
    shown, error = capsys.readouterr()
    assert (end.value.code, error) == (0, "")
    assert "fused_optim.AdamW" in shown
    assert "native" in shown
    assert (tmp_path / "out" / "train_gpt.png").read_bytes().startswith(b"\x89PNG")

    saved = torch.load(tmp_path / "gpt.pt")["state"]
    weights = [torch.zeros_like(weight) for weight in saved["model"].values()]
    split = ([w for w in weights if w.dim() > 1], [w for w in weights if w.dim() == 1])
    optimizer = torch.optim.AdamW([{"params": part} for part in split])
    optimizer.load_state_dict(saved["optimizer"])
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}
    assert all(state["exp_avg"].any() for state in optimizer.state.values())


@pytest.fixture
def files(example, tmp_path, monkeypatch):
    """Files that cannot be used, by name."""
    monkeypatch.chdir(tmp_path)
    state = tiny(example)[1].fused.state_dict()
    create = example.checkpoint.Checkpoint
    create("AdamW", 0, 500, 3, state).save(Path("small.pt"))
    create("SGD", 0, 500, 3, state).save(Path("sgd.pt"))
    create("AdamW", 0, 500, 500, state).save(Path("done.pt"))
    torch.save({"weights": torch.zeros(3)}, "other.pt")
    Path("half.pt").write_bytes(Path("small.pt").read_bytes()[:5000])
    Path("text.pt").write_text("no checkpoint\n" * 50)
    Path("empty.pt").touch()
    Path("short.txt").write_text("too short")
    return tmp_path


BAD = {
    "--text missing.txt": "missing.txt cannot be read: No such file",
    "--text .": "cannot be read: Is a directory",
    "--text short.txt": "must have >= 651 bytes, got 9",
    "--optimizer Nonsense": "--optimizer must be one of ",
    "--optimizer LBFGS": "--optimizer must be one of ",
    "--device nonsense": "--device nonsense cannot be used",
    "--device meta": "--device meta cannot be used",
    "--device cuda:99": "--device cuda:99 cannot be used",
    "--backend nonsense": "backend must be one of",
    "--steps 0": "must be a whole number >= 1, got '0'",
    "--steps many": "must be a whole number >= 1, got 'many'",
    "--seed -1": "must be a whole number >= 0, got '-1'",
    "--steps 5 --nonsense": "unrecognized arguments: --nonsense",
    "--resume missing.pt": "missing.pt cannot be read: No such file",
    "--resume other.pt": "other.pt is no checkpoint of this example",
    "--resume half.pt": "half.pt is no checkpoint of this example",
    "--resume text.pt": "text.pt is no checkpoint of this example",
    "--resume empty.pt": "empty.pt is no checkpoint of this example",
    "--resume small.pt": "a checkpoint of another model",
    "--resume sgd.pt --optimizer AdamW": "--optimizer must be SGD",
    "--resume done.pt": "at step 500 of 500 already",
    "--save missing/gpt.pt": "missing/gpt.pt cannot be written",
    "--save .": "cannot be written",
    "--out short.txt": "short.txt",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_ends_in_one_line(example, files, options, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(options.split())
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m examples.gpt: error: ")
    assert BAD[options] in message
    assert message.count("\n") == 1
