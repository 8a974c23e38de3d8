"""The fixture of tests that run in the PTX interpreter and on a GPU."""

import pytest
from gpu_code.devices import GPU, device_named


@pytest.fixture(params=["sm_90", GPU])
def device(request):
    """Return the device; for other targets parametrize with ``indirect=["device"]``."""
    return device_named(request.param)
