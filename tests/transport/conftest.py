"""Backends for these tests: virtual time for what runs in memory, the plain loops (uvloop too) for real sockets."""

from importlib.util import find_spec
from typing import Any

import pytest

from towline.testing import virtual_time, virtual_time_backends

REAL_BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    *([pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")] if find_spec("uvloop") else []),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(params=virtual_time_backends())
def virtual_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_time(request.param)


@pytest.fixture(params=REAL_BACKENDS)
def real_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    backend: tuple[str, dict[str, Any]] = request.param
    return backend
