"""DTensors and process groups, in four processes that are started once."""

import pytest
from distributed.features import DOCS, make_table
from distributed.processes import MODULES, load_checks, run_checks

# of modules of torch that are imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.slow
def test_checks():
    errors = run_checks()
    assert not any(errors.values()), "\n".join(filter(None, errors.values()))
    assert errors.keys() == load_checks(MODULES).keys()


def test_the_docs_have_the_table_of_the_checks():
    """``python -m distributed.features`` in tests/ writes it from results."""
    assert make_table({}) in DOCS.read_text()
