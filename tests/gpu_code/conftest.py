"""The fixture through which tests run on the stand-in and on a GPU."""

import pytest
from gpu_code.devices import GPU, device_named


@pytest.fixture(params=["sm_90", GPU])
def device(request):
    """Parametrize with ``indirect=["device"]`` for other targets."""
    return device_named(request.param)
