"""Virtual time on both backends; `test_real.py` runs on plain loops instead."""

from typing import Any

import pytest

from towline.testing import virtual_time, virtual_time_backends


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_time(request.param)
