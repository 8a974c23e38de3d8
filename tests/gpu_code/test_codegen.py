"""Checks of the compiled kernels: widths, bytes, registers and rounding, on every target.

The checks are those of ``ci/codegen/checks.py``; the rules, formats and targets are selected in
``selection.py``, and all of them run with ``--full``, as with ``python -m ci.codegen --all``. That
each check fails where it should is tested in ``test_codegen_checks.py``.
"""

import pytest
from gpu_code.selection import aligned_builds, few_builds, other_builds, unaligned_builds
from helpers.versions import OLD_LIBDEVICE

from ci.codegen.builds import Build, made
from ci.codegen.checks import complaints
from ci.codegen.facts import Facts
from ci.codegen.ptx import Ptx

# IEEE division and root where denormals are zero: test_ptx_execution.py tests their results
FLUSHING = ("div.rn.ftz.f32", "sqrt.rn.ftz.f32")


@pytest.fixture(autouse=OLD_LIBDEVICE, scope="module")
def _flushing_is_known():
    known = Ptx.inexact.fget
    with pytest.MonkeyPatch.context() as patched:
        others = property(lambda code: [one for one in known(code) if not one.startswith(FLUSHING)])
        patched.setattr(Ptx, "inexact", others)
        yield


def facts(build: Build) -> Facts:
    return Facts(made(build), build.kernel, build.target, build.kind)


BUILDS = {
    "test_the_update": aligned_builds,
    "test_the_update_of_unaligned_rows": unaligned_builds,
    "test_the_other_kernels": other_builds,
}


def among_few(test: str) -> list[Build]:
    """Return the builds of --few for this test."""
    update = {"test_the_update": True, "test_the_update_of_unaligned_rows": False}
    return [
        build
        for build in few_builds()
        if (build.aligned if build.kernel == "update" else None) == update.get(test)
    ]


# one test per build, with all its checks, so that a build is compiled in one process only
def pytest_generate_tests(metafunc):
    name = metafunc.function.__name__
    if metafunc.config.getoption("few"):
        builds = among_few(name)
    else:
        builds = BUILDS[name](metafunc.config.getoption("full"))
    metafunc.parametrize("build", builds, ids=str)


def test_the_update(build):
    assert not complaints(facts(build))


def test_the_update_of_unaligned_rows(build):
    assert not complaints(facts(build))


def test_the_other_kernels(build):
    assert not complaints(facts(build))
