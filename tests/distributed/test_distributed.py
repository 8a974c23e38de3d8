"""DTensors and process groups, in four processes that are started once for each module."""

import pytest
from distributed.processes import run_checks

MODULES = ("updates", "norms", "checkpoints", "engines")


@pytest.mark.parametrize("module", MODULES)
def test_checks(module):
    errors = run_checks(module)
    assert len(errors) > 1
    assert not any(errors.values()), "\n".join(filter(None, errors.values()))
