"""DTensors and process groups, in four processes that are started once for each module."""

import pytest
from distributed.features import DOCS, make_table
from distributed.processes import MODULES, run_checks


@pytest.mark.parametrize("module", MODULES)
def test_checks(module):
    errors = run_checks(module)
    assert len(errors) > 1
    assert not any(errors.values()), "\n".join(filter(None, errors.values()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules of torch that are imported
def test_the_docs_have_the_table_of_the_checks():
    """``python -m distributed.features`` in tests/ writes it from results."""
    assert make_table({}) in DOCS.read_text()
