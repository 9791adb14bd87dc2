"""A server that announces a replay and does not complete it, on a link that stays open."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import anyio
import pytest

from towline import Connection, JobComplete, State
from towline.testing import Accept, Answer, ScriptedJob, ScriptedServer

pytestmark = pytest.mark.anyio
Follow = Callable[..., Connection]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A server whose socket shows only what the test sends."""
    async with ScriptedServer() as scripted:
        scripted.script("upgrade", Accept(answers_ready=False))
        yield scripted


@pytest.fixture
async def job(server: ScriptedServer) -> ScriptedJob:
    job = server.job("j1", token="t1")
    for count in (1, 2, 3):
        job.progress(count / 9, processed=count)
    return job


def announce(server: ScriptedServer, job: ScriptedJob, last: int) -> None:
    """Say that the events up to this one follow."""
    server.socket.send_text(json.dumps({"type": "ready_ack", "jobId": "j1", "epoch": job.epoch, "from": 1, "to": last}))


async def begin_replay(server: ScriptedServer, job: ScriptedJob, line: Connection) -> None:
    """Announce three events and send the first. Meanwhile the state is fetched."""
    await line.wait_for(State.SYNCING)
    announce(server, job, 3)
    server.socket.send_event(job.log[0])
    await anyio.sleep(2)
    assert line.state is State.SYNCING


@pytest.mark.parametrize("has_state", [True, False])
async def test_messages_that_are_no_part_of_it_do_not_prolong_it(
    follow: Follow, server: ScriptedServer, job: ScriptedJob, has_state: bool
) -> None:
    if not has_state:
        server.always("state", Answer(404))
    async with follow(server) as line:
        await begin_replay(server, job, line)
        for _ in range(3):
            server.socket.send_text('{"type":"pong"}')
            await anyio.sleep(5)
        await line.wait_for(State.CONNECTED, timeout=1)
        assert line.statistics().dials == 1


@pytest.mark.parametrize("has_ended", [True, False])
async def test_the_state_that_was_fetched_meanwhile_decides_when_it_breaks_off(
    follow: Follow, server: ScriptedServer, job: ScriptedJob, has_ended: bool
) -> None:
    if has_ended:
        job.silent = True
        job.complete({"books": [], "errors": [], "successRate": "1/1"})
    async with follow(server) as line:
        await begin_replay(server, job, line)
        server.socket.send_event(job.log[2])
        with anyio.fail_after(5):
            if has_ended:
                assert isinstance(await line.result(), JobComplete)
            else:
                await line.wait_for(State.CONNECTED)
        assert line.statistics().dials == 1


async def test_an_end_that_the_state_said_stands_where_there_is_nothing_to_replay(
    follow: Follow, server: ScriptedServer, job: ScriptedJob
) -> None:
    job.silent = True
    job.complete({"books": [], "errors": [], "successRate": "1/1"})
    async with follow(server) as line:
        await line.wait_for(State.SYNCING)
        await anyio.sleep(0.5)
        announce(server, job, 0)
        with anyio.fail_after(5):
            assert isinstance(await line.result(), JobComplete)
