"""The same scenarios for every way to follow a job: virtual time, and a server in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from job_server import JobServer, Way

from towline.testing import virtual_time, virtual_time_backends

WAYS: tuple[Way, ...] = ("websocket", "websocket+state", "events", "lines", "poll")


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)


@pytest.fixture(params=WAYS)
async def server(request: pytest.FixtureRequest, anyio_backend: object) -> AsyncIterator[JobServer]:
    """A server that is followed in each of the ways; after the test nothing of the client is left."""
    async with JobServer(request.param) as server:
        yield server
        await anyio.sleep(30)
        assert server.network.links == ()
        assert [task.name for task in anyio.get_running_tasks() if str(task.name).startswith("towline")] == []
