"""The same stories on Towline's own wire, whose server keeps a numbered log: every update once, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import anyio
import pytest
from scenario import LONG, gaps

from towline import Connection, JobComplete, MemoryTokenStore, Policy, Progress, State
from towline.testing import Answer, ScriptedJob, ScriptedServer

pytestmark = pytest.mark.anyio

RESULT = {"books": []}
Story = Callable[[Connection, ScriptedJob], Awaitable[None]]
Follow = Callable[..., Connection]


@pytest.fixture
async def server(anyio_backend: object) -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as scripted:
        yield scripted


async def check_exact(server: ScriptedServer, follow: Follow, story: Story, **options: Any) -> Connection:
    """Follow `j1` while the story runs; every update of its log arrives once, in order."""
    job = server.job("j1", token="t1")
    told: list[Any] = []
    async with follow(server, **options) as connection:
        async with anyio.create_task_group() as tasks:

            async def collect() -> None:
                async for update in connection:
                    told.append(update)  # noqa: PERF401 - what came before an error counts

            tasks.start_soon(collect)
            await connection.wait_for(State.CONNECTED)
            await story(connection, job)
    assert [update.seq for update in told if isinstance(update, Progress | JobComplete)] == list(
        range(1, job.last_seq + 1)
    )
    assert gaps(told) == []
    assert isinstance(told[-1], JobComplete)
    await anyio.sleep(30)
    assert server.network.links == ()
    return connection


@pytest.mark.parametrize("ending", ["fin", "rst", "torn"])
@pytest.mark.parametrize("after", range(4))
async def test_a_cut_at_each_message(
    server: ScriptedServer, follow: Follow, after: int, ending: Literal["fin", "rst", "torn"]
) -> None:
    async def story(connection: Connection, job: ScriptedJob) -> None:
        for done in range(4):
            if done == after:
                link = server.socket.link
                if ending == "torn":
                    link.end_after(link.carried("down") + 20, "down")
                else:
                    link.cut(ending)
            job.progress(done / 10)
            await anyio.sleep(LONG)
        job.complete(RESULT)

    await check_exact(server, follow, story)


async def test_503_for_a_while_and_the_end_meanwhile(server: ScriptedServer, follow: Follow) -> None:
    async def story(connection: Connection, job: ScriptedJob) -> None:
        job.progress(0.1)
        server.always("upgrade", Answer(503))
        server.always("state", Answer(503))
        server.socket.cut()
        job.progress(0.2)
        job.complete(RESULT)
        await anyio.sleep(60)
        assert connection.outcome is None
        server.always("upgrade", None)
        server.always("state", None)

    await check_exact(server, follow, story)


async def test_a_token_of_the_provider(server: ScriptedServer, follow: Follow) -> None:
    valid = ["t1"]

    async def provider() -> str:
        return valid[-1]

    async def story(connection: Connection, job: ScriptedJob) -> None:
        job.progress(0.1)
        valid.append(server.renew(job))
        server.revoke("t1")
        server.socket.cut()
        job.progress(0.2)
        await anyio.sleep(LONG)
        job.complete(RESULT)

    await check_exact(server, follow, story, token=provider)


async def test_background_wake_and_another_path(server: ScriptedServer, follow: Follow) -> None:
    async def story(connection: Connection, job: ScriptedJob) -> None:
        connection.background(grace=0)
        job.progress(0.1)
        await anyio.sleep(3600)
        connection.foreground()
        await connection.wait_for(State.CONNECTED)
        connection.report_network(False)
        server.socket.cut()
        job.progress(0.2)
        await anyio.sleep(3600)
        connection.report_network(True, "wifi")
        connection.report_wake()
        job.progress(0.3)
        await anyio.sleep(LONG)
        job.complete(RESULT)

    await check_exact(server, follow, story, policy=Policy())


async def test_another_connection_resumes(server: ScriptedServer, follow: Follow) -> None:
    store = MemoryTokenStore()
    job = server.job("j1", token="t1")
    seen: list[int | None] = []
    async with follow(server, store=store) as connection:
        await connection.wait_for(State.CONNECTED)
        job.progress(0.1)
        job.progress(0.2)
        async for update in connection:
            seen.append(update.seq)
            if update.seq == 2:
                break
    job.progress(0.3)
    job.complete(RESULT)
    async with follow(server, store=store, token=None) as connection:
        # The second was in hand when the first program left.
        assert [update.seq async for update in connection if isinstance(update, Progress | JobComplete)] == [2, 3, 4]
    assert seen == [1, 2]
