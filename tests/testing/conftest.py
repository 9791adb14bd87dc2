"""Virtual time for the tests of what runs in memory; tests on real sockets use the plain backends."""

from typing import Any

import pytest

from towline.testing import virtual_time, virtual_time_backends


@pytest.fixture(params=virtual_time_backends())
def virtual_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_time(request.param)
