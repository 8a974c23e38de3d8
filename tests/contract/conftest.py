"""The record of the feature that each contract test is about, for ci/contract_table.py."""

import pytest


@pytest.fixture(autouse=True)
def _feature(request, record_property):
    """Write the feature and the optimizer of a test into the JUnit file."""
    marker = request.node.get_closest_marker("feature")
    assert marker, "a test of the contract needs @pytest.mark.feature(name)"
    record_property("feature", marker.args[0])
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    record_property("optimizer", case.fused.__name__ if case else "all")
