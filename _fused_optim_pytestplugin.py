"""The pytest plugin of fused_optim: a fixture, and nothing else.

It is no module of the package, so that a run of pytest that does not use the fixture imports
neither fused_optim nor torch.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def assert_optimizers_equivalent() -> "Callable[..., None]":
    """Compare two optimizers on your parameters: fused_optim.testing.assert_equivalent."""
    from fused_optim.testing import assert_equivalent

    return assert_equivalent
