"""Virtual time for what follows a scripted job in memory; tests on real sockets bring their own backends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from towline import Connection
from towline.testing import ScriptedServer, virtual_time, virtual_time_backends


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A server with the job `j1`, whose token is `t1`: `server.job1`."""
    async with ScriptedServer() as scripted:
        scripted.job("j1", token="t1")
        yield scripted


@pytest.fixture
def follow() -> Callable[..., Connection]:
    """A connection to the job `j1` of a scripted server."""

    def follow(server: ScriptedServer, **options: Any) -> Connection:
        options = {"job": "j1", "token": "t1", "network": server.network, "allow_insecure": True, **options}
        return Connection(options.pop("url", "ws://hub/ws/progress"), **options)

    return follow
