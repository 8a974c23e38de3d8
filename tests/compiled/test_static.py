"""Static facts of the compiled kernels: widths, bytes, registers and rounding, on every target.

``benchmarks/static_checks.py`` says what must hold, and ``build.py`` for which rules, formats and
targets: every pair of them here, everything in ``python -m benchmarks.kernels --all``. That a
check sees what it is for is shown in ``test_static_seen.py``.
"""

import pytest
from compiled.build import Build, aligned_builds, made, other_builds, unaligned_builds

from benchmarks.static_checks import complaints
from benchmarks.static_facts import Facts


def facts(build: Build) -> Facts:
    return Facts(made(build), build.kernel, build.target, build.kind)


# a build is one test, whatever is asked of it: so it is compiled in one process only
@pytest.mark.parametrize("build", aligned_builds(), ids=str)
def test_the_update(build):
    assert not complaints(facts(build))


@pytest.mark.parametrize("build", unaligned_builds(), ids=str)
def test_the_update_of_unaligned_rows(build):
    assert not complaints(facts(build))


@pytest.mark.parametrize("build", other_builds(), ids=str)
def test_the_other_kernels(build):
    assert not complaints(facts(build))
