"""``fused-optim check``: it finds each fault of a broken backend, and says how to repeat it.

The faults are those of ``FAULTS``: a runner that does one thing wrong takes the place of the
library's. Faults of the check tried by hand: states that are not measured, bits that are not
compared, a seed missing from the command, failures missing from the XML file, an exit code of 0.
"""

import json
import re
import shlex
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fused_optim.backends import select
from fused_optim.backends.kernel_runner import KernelRunner
from fused_optim.cli.main import main
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.kernels.rules.signatures import AdamScalars
from fused_optim.kernels.signatures import CommonScalars
from fused_optim.step import plan
from fused_optim.testing import closeness
from fused_optim.testing.checks import Settings, _judge, drop_rows, run_checks
from fused_optim.testing.comparisons import TORCH_FORMATS
from fused_optim.testing.selection import AGAINST, Wanted, first_of_rules, list_checks

CASE = ("--optimizer", "adamw-decay", "--dtype", "float32", "--device", "cpu")


class Faulty(KernelRunner):
    """A runner whose bucket may be that of another rule, which it leaves intact."""

    @property
    def is_adam(self):
        return self.key.rule.scalars is AdamScalars

    def change_scalar(self, name, change):
        column = self.scalars[:, len(CommonScalars._fields) + AdamScalars._fields.index(name)]
        column.copy_(change(column))


class WrongDecay(Faulty):
    def prepare(self, *args):
        super().prepare(*args)
        if self.is_adam:
            self.change_scalar("decay", lambda x: 1.1 * x)


class NoBiasCorrection(Faulty):
    def prepare(self, *args):
        super().prepare(*args)
        if self.is_adam:
            self.change_scalar("step_size", lambda x: torch.full_like(x, 0.1))
            self.change_scalar("inv_bias_correction2_sqrt", torch.ones_like)


class SwappedStates(Faulty):
    def bind(self, bucket):
        super().bind(bucket)
        if self.is_adam:
            first = 2 + self.key.first[2]
            table = self.host.copy()
            table[:, [first, first + 1]] = self.host[:, [first + 1, first]]
            self._bind_rows(table)


class TailOffByOne(Faulty):
    def bind(self, bucket):
        super().bind(bucket)
        if self.is_adam:
            table = self.host.copy()
            table[:, 0] = np.maximum(table[:, 0] - 1, 0)
            self._bind_rows(table)


class StaleGradient(Faulty):
    def rebind(self, grad_addresses, make_rows, options):
        stale = self.host[:, 2 + self.key.first[1]]
        super().rebind(stale if self.is_adam else grad_addresses, make_rows, options)


FAULTS = [WrongDecay, NoBiasCorrection, SwappedStates, TailOffByOne, StaleGradient]


@pytest.fixture
def break_backend(monkeypatch):
    """Return a function that puts a faulty runner in the place of the library's."""

    def replace(fault):
        def make(key):
            if key.backend == "reference":
                return select.make_runner(key)
            return fault(key, select._make_executor(key))

        monkeypatch.setattr(plan, "make_runner", make)

    return replace


@pytest.fixture
def check(capsys):
    """Return a function that runs the command: exit code, lines of stdout, stderr."""

    def run(*arguments):
        code = main(["check", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def results_of(case="adamw-decay", **wanted):
    settings = Settings(torch.device("cpu"), "native")
    checks = list_checks(Wanted([case], dtypes=["float32"], **wanted), "native")
    return list(run_checks(checks, settings))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_each_comparison(fault, break_backend):
    break_backend(fault)
    results = results_of()
    assert [result.check.against for result in results] == list(AGAINST)
    assert all(result.status == "failed" for result in results)
    assert not any(result.worst.close for result in results)


@pytest.mark.parametrize("fault", [NoBiasCorrection, SwappedStates])
def test_faults_of_sparse_rows_fail(fault, break_backend):
    assert {result.status for result in results_of("sparse-adam")} == {"passed"}
    break_backend(fault)
    assert {result.status for result in results_of("sparse-adam")} == {"failed"}


def test_sparse_gradients_lack_rows_and_repeat_one():
    dense = torch.arange(1.0, 21).view(10, 2)
    rows = []
    for step in range(3):
        sparse = drop_rows(dense, step)
        assert not sparse.is_coalesced()
        rows.append((sparse.to_dense() != 0).any(1))
        assert sparse._nnz() == 1 + rows[-1].sum()
    assert torch.stack(rows).any(0).all(), "each row has a gradient in some step"
    assert len({tuple(row.tolist()) for row in rows}) == 3


def test_a_long_message_is_cut(monkeypatch):
    def fail(key):
        raise RuntimeError("no " * 1000)

    monkeypatch.setattr(plan, "make_runner", fail)
    assert all(len(result.message) <= 300 for result in results_of())


def test_the_intact_backend_passes(check):
    code, out, err = check(*CASE)
    assert code == 0
    assert "3 passed, 0 failed" in out
    assert err == ""
    assert "\x1b" not in out, "piped output has no colours"


def test_a_failure_says_how_to_repeat_it(check, break_backend, monkeypatch):
    break_backend(TailOffByOne)
    code, out, _ = check(
        "--optimizer", "adamw-decay,sgd", "--dtype", "float32", "--seed", "3", "--device", "cpu"
    )
    assert code == 1
    assert "3 passed, 3 failed" in out
    commands = [line.strip() for line in out.splitlines() if line.startswith("  fused-optim")]
    assert len(commands) == 3
    found = [check(*shlex.split(command)[2:], "--json") for command in commands]
    for (code, out, _), against in zip(found, AGAINST, strict=True):
        report = json.loads(out)
        assert code == 1
        assert [one["name"] for one in report["results"]] == [
            f"adamw-decay/float32/plain-param/{against}"
        ]
        assert report["settings"]["seed"] == 3
    monkeypatch.undo()
    assert check(*shlex.split(commands[0])[2:])[0] == 0


def test_junit_has_every_check_and_each_failure(check, break_backend, tmp_path):
    break_backend(WrongDecay)
    path = tmp_path / "numerics.xml"
    names = "adamw-decay,sgd"
    assert check("--optimizer", names, "--dtype", "float32", "--junit", str(path))[0] == 1
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("6", "3", "0")
    failed = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    assert {case.get("classname") for case in failed} == {"fused_optim.AdamW"}
    assert "fused-optim check --optimizer adamw-decay" in failed[0].find("failure").text
    assert {p.get("name") for p in suite.iter("property")} >= {"torch", "backend", "device"}


def test_two_reports_are_compared(check, break_backend, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(check(*CASE, "--json")[1])
    assert check("--compare", str(old), str(old))[0] == 0
    break_backend(WrongDecay)
    new.write_text(check(*CASE, "--against", "reference,torch", "--json")[1])
    code, out, _ = check("--compare", str(old), str(new), "--json")
    assert code == 1
    kinds = {one["name"].split("/")[-1]: one["kind"] for one in json.loads(out)["differences"]}
    assert kinds == {"reference": "failed", "torch": "failed", "float64": "missing"}
    assert check("--compare", str(new), str(old))[0] == 0


def test_other_bits_are_a_difference(check, tmp_path):
    report = json.loads(check(*CASE, "--json")[1])
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    paths[0].write_text(json.dumps(report))
    report["results"][0]["digest"] = "0" * 16
    paths[1].write_text(json.dumps(report))
    code, out, _ = check("--compare", *map(str, paths))
    assert code == 1
    assert "1 of 1 differences are worse" in out


def test_an_error_of_the_library_is_a_failure(monkeypatch):
    def fail(key):
        raise RuntimeError("no runner")

    monkeypatch.setattr(plan, "make_runner", fail)
    assert {(r.status, r.message) for r in results_of()} == {("failed", "RuntimeError: no runner")}


def test_what_torch_itself_cannot_compute_is_skipped():
    wanted = Wanted(["sgd"], ["plain"], ["param"], ["float16"], ["torch"])
    (check,) = list_checks(wanted, "native")
    exact = torch.ones(3, dtype=torch.float64)
    good, bad = torch.ones(3).half(), torch.tensor([1.0, 1.0, torch.nan]).half()
    found = {"step": closeness.measure(good, good, exact)}
    for ours, theirs, status in (
        (good, bad, "skipped"),
        (good, good, "passed"),
        (bad, good, "failed"),
        (bad, bad, "failed"),
    ):
        measured = {**found, "param": closeness.measure(ours, theirs, exact)}
        assert _judge(check, measured, "").status == status


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "Adamw2"], "--optimizer must be one of AdamW, Adam, .*got 'Adamw2'"),
        (["--weights", "splot"], "--weights must be one of plain, master, .*got 'splot'"),
        (["--states", "int4"], "--states must be one of param, fp32, .*got 'int4'"),
        (["--dtype", "int8"], "--dtype must be one of float32, .*got 'int8'"),
        (["--against", "jax"], "--against must be one of reference, float64, torch, got 'jax'"),
        (["--backend", "cuda"], "--backend must be one of auto, .*got 'cuda'"),
        (["--weights", "split", "--dtype", "float32"], "no check has all of these arguments"),
        (["--shapes", "nowhere.json"], "--shapes .*nowhere.json cannot be read"),
        (["--quick", "--full"], "--quick and --full exclude each other"),
        (["--junit", "/nowhere/x.xml"], "--junit /nowhere/x.xml cannot be written"),
        (["--compare", "a.json", "b.json"], "--compare: a.json cannot be read"),
        (["--seed", "-1"], "--seed"),
        (["--nothing"], "--nothing"),
    ],
)
def test_bad_arguments_are_one_line(check, arguments, words):
    code, out, err = check(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(words, err), err


def test_shapes_of_a_file(check, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"weight": [70, 70], "again": [70, 70], "bias": [70]}))
    code, out, _ = check(*CASE, "--shapes", str(path), "--json")
    assert code == 0
    assert json.loads(out)["settings"]["shapes"] == str(path)


def test_the_default_has_every_rule_and_every_format():
    variants = [check.variant for check in list_checks(Wanted(), "native")]
    for case in first_of_rules():
        own = [variant for variant in variants if variant.case is case]
        assert {variant.dtype for variant in own} == {torch.float32, torch.bfloat16}
        assert any(variant.formats != TORCH_FORMATS for variant in own)
    assert {v.weights for v in variants} == set(WEIGHTS)
    assert {v.states for v in variants} == set(STATES)
    full = {check.variant.formats for check in list_checks(Wanted(amount="full"), "native")}
    assert len(full) == len(WEIGHTS) * len(STATES)
    own = {"plain", "param"}  # the spacing of the dtype
    assert closeness.SPACING.keys() == {*WEIGHTS, *STATES} - own


def test_without_kernels_no_bits_are_compared(check):
    code, out, _ = check(*CASE, "--backend", "reference")
    assert code == 0
    assert "2 passed" in out
    assert "no bits were compared" in out
