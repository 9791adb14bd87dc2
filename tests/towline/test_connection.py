"""`Connection` as its users meet it: on memory streams, under virtual time, on asyncio and trio."""

from __future__ import annotations

import pytest

import towline
from towline import Connection, JobComplete, Progress, State
from towline.testing import ScriptedServer, virtual_time, virtual_time_backends

pytestmark = pytest.mark.anyio
URL = "ws://hub/ws/progress"
RESULT = {"books": [], "errors": [], "successRate": "2/2"}


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)


def follow(server: ScriptedServer, **options: object) -> Connection:
    options = {"job": "j1", "token": "t1", "network": server.network, "allow_insecure": True, **options}
    return Connection(URL, **options)


async def test_a_job_is_followed_to_its_end() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=2)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            job.progress(0.5, processed=1)
            job.progress(1.0, processed=2)
            job.complete(RESULT)
            updates = [update async for update in line]
        assert [type(update) for update in updates] == [towline.JobStarted, Progress, Progress, JobComplete]
        assert [update.seq for update in updates] == [1, 2, 3, 4]
        assert line.outcome is updates[-1]
        assert server.socket.client_close == (1000, "")


async def test_the_end_while_away_is_told_once() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=2)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            server.socket.cut("rst")
            job.progress(0.5, processed=1)
            job.complete(RESULT)
            updates = [update async for update in line]
        assert isinstance(updates[-1], JobComplete)
        assert sum(isinstance(update, JobComplete) for update in updates) == 1
