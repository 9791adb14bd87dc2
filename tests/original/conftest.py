"""Virtual time, the stand-in for the original backend, and a follower of its job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stand_in import StandIn

from towline.testing import virtual_time, virtual_time_backends


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)


@pytest.fixture
def backend() -> Iterator[Callable[..., StandIn]]:
    """Makes stand-ins. After the test, none of them may have a complaint about its clients."""
    made: list[StandIn] = []

    def make(name: str, **options: Any) -> StandIn:
        made.append(StandIn(name, **options))
        return made[-1]

    yield make
    assert [complaint for server in made for complaint in server.complaints] == []
