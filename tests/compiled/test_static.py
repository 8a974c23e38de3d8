"""Static facts of the compiled kernels: widths, bytes, registers and rounding, on every target.

``benchmarks/static_checks.py`` says what must hold, and ``build.py`` for which rules, formats and
targets: every pair of them, and everything with ``--full``, as ``python -m benchmarks.kernels
--all`` has it. That a
check sees what it is for is shown in ``test_static_seen.py``.
"""

from compiled.build import Build, aligned_builds, made, other_builds, unaligned_builds

from benchmarks.static_checks import complaints
from benchmarks.static_facts import Facts


def facts(build: Build) -> Facts:
    return Facts(made(build), build.kernel, build.target, build.kind)


BUILDS = {
    "test_the_update": aligned_builds,
    "test_the_update_of_unaligned_rows": unaligned_builds,
    "test_the_other_kernels": other_builds,
}


# a build is one test, whatever is asked of it: so it is compiled in one process only
def pytest_generate_tests(metafunc):
    builds = BUILDS[metafunc.function.__name__](metafunc.config.getoption("full"))
    metafunc.parametrize("build", builds, ids=str)


def test_the_update(build):
    assert not complaints(facts(build))


def test_the_update_of_unaligned_rows(build):
    assert not complaints(facts(build))


def test_the_other_kernels(build):
    assert not complaints(facts(build))
