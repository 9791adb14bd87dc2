"""Virtual time for the tests of the runner."""

from __future__ import annotations

import pytest

from towline.testing import virtual_time, virtual_time_backends


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)
