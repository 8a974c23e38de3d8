"""Checks in several processes: the same results in the same order, and none is lost.

Faults tried by hand: results in the order in which they come; a process that dies seen as success;
one process always; processes for an accelerator; SIGINT not ignored.
"""

import multiprocessing
import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from fused_optim.testing import processes
from fused_optim.testing.checks import Result, Settings, run_checks
from fused_optim.testing.processes import WORTHWHILE, choose_processes, run_in_processes
from fused_optim.testing.selection import Wanted, list_checks

CPU = Settings(torch.device("cpu"), "native")


def list_two_variants():
    return list_checks(Wanted(["sgd", "lion"], dtypes=["float32"]), "native")


@pytest.fixture
def asked(monkeypatch):
    """Return the start methods that are asked for; spawned processes import torch for seconds."""
    fork, methods = multiprocessing.get_context("fork"), []

    def get_context(method):
        methods.append(method)
        return fork

    monkeypatch.setattr(processes.multiprocessing, "get_context", get_context)
    return methods


# torch has threads, none of which matters to children that use one themselves
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@FORKS
def test_two_processes_give_the_results_of_one(asked):
    checks = list_two_variants()
    expected = [result._replace(seconds=0.0) for result in run_checks(checks, CPU)]
    found = [result._replace(seconds=0.0) for result in run_in_processes(checks, CPU, 2)]
    assert [result.check.name for result in found] == [check.name for check in checks]
    # results hold their checks, which are other objects after the way through a pipe
    assert [result[1:] for result in found] == [result[1:] for result in expected]
    assert any(result.digest for result in found)
    assert asked == ["spawn"]  # a fork may hang where OpenMP has threads


@FORKS
def test_ctrl_c_is_left_to_the_process_that_waits(asked, monkeypatch):
    """Guard against tracebacks of the others, which a terminal interrupts as well."""

    def describe_handler(checks, settings):
        handler = str(signal.getsignal(signal.SIGINT))
        return [Result(check, "passed", message=handler) for check in checks]

    monkeypatch.setattr(processes, "run_checks", describe_handler)
    before = signal.getsignal(signal.SIGINT)
    messages = {one.message for one in run_in_processes(list_two_variants(), CPU, 2)}
    assert messages == {str(signal.SIG_IGN)}
    assert signal.getsignal(signal.SIGINT) == before


def test_a_process_that_dies_fails_what_it_had_to_check(monkeypatch):
    class Pool:
        def __init__(self, *arguments, **options):
            self.submitted = 0

        def submit(self, function, checks, settings):
            future = Future()
            self.submitted += 1
            if self.submitted == 1:
                future.set_result(function(checks, settings))
            else:
                future.set_exception(BrokenProcessPool("died"))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    checks = list_two_variants()
    results = list(run_in_processes(checks, CPU, 2))
    assert [result.check for result in results] == checks
    states = {}
    for result in results:
        states.setdefault(result.check.variant.case.name, set()).add(result.status)
    assert states == {"sgd": {"passed"}, "lion": {"failed"}}
    assert "--processes 1" in results[-1].message


@pytest.mark.parametrize(
    ("count", "threads", "device", "expected"),
    [
        (WORTHWHILE - 1, 8, "cpu", 1),
        (3 * WORTHWHILE, 8, "cpu", 3),
        (3 * WORTHWHILE, 2, "cpu", 2),
        (3 * WORTHWHILE, 8, "cuda", 1),
    ],
)
def test_processes_are_chosen_by_work_and_threads(count, threads, device, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    settings = CPU._replace(device=torch.device(device))
    assert choose_processes([list_two_variants()[0]] * count, settings) == expected
