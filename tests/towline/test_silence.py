"""Silence of a job: looks into it, one reconnect, a limit. In memory, under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from towline import Connection, Exhausted, JobComplete, MemoryTokenStore, Policy, Progress, Resynced, Stalled, State
from towline.testing import Answer, Hang, Reach, ScriptedJob, ScriptedServer, Unreachable

pytestmark = pytest.mark.anyio
RESULT = {"books": [], "errors": [], "successRate": "1/1"}
Follow = Callable[..., Connection]


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[tuple[ScriptedServer, ScriptedJob]]:
    async with ScriptedServer(**options) as server:
        yield server, server.job("j1", token="t1")


async def gave_up(line: Connection) -> Exhausted:
    with pytest.raises(Exhausted) as raised:
        await line.result()
    return raised.value


async def test_an_end_that_nobody_sent_is_found_by_silence(follow: Follow) -> None:
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            job.silent = True
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)
            assert anyio.current_time() == pytest.approx(120, abs=5)


async def test_a_stall_is_reported_at_each_look(follow: Follow) -> None:
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            await anyio.sleep(4000)
            job.progress(0.5, keep_alive=True)
            await anyio.sleep(600)
            job.progress(0.5, processed=1)
            await anyio.sleep(300)
            job.complete(RESULT)
            kinds = [type(update) for update in [update async for update in line]]
            # Looks at 120, 360, 960, 1560, … 4560 s of the first silence, and at 120 s of the second.
            assert kinds == [*[Stalled] * 9, Progress, Stalled, JobComplete]
            # The second look of the first silence reconnected once.
            assert (line.statistics().dials, line.statistics().retries) == (2, 0)


@pytest.mark.parametrize("answer", [Answer(404), Answer(500), Hang(), Answer(200, b"?")], ids=str)
async def test_a_stall_is_reported_whether_or_not_the_state_call_works(follow: Follow, answer: Any) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", answer)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            await anyio.sleep(200)
            job.complete(RESULT)
            updates = [update async for update in line]
            stall = updates[-2]
            assert isinstance(stall, Stalled)
            assert stall.seconds == pytest.approx(120, abs=10)


async def test_a_stalled_job_is_given_up_at_the_limit_and_can_be_resumed(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        store = MemoryTokenStore()
        async with follow(server, store=store, policy=Policy(stall_limit=3600)) as line:
            await line.wait_for(State.CONNECTED)
            job.progress(0.5, processed=1)
            began = anyio.current_time()
            error = await gave_up(line)
            assert (error.reason, error.__cause__) == ("stalled", None)
            assert "no sign for 3600 s" in str(error)
            assert anyio.current_time() - began == pytest.approx(3600, abs=30)
            assert line.outcome is None
        async with follow(server, url=None, token=None, store=store) as line:
            await line.wait_for(State.CONNECTED)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


@pytest.mark.parametrize(
    "message", ['{"type":"job_progress","payload":{}}', '{"type":"news"}', "no JSON", '{"type":7}']
)
async def test_a_message_that_cannot_be_read_is_a_sign_of_the_job(follow: Follow, message: str) -> None:
    async with scripted(numbered=False) as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            for _ in range(20):
                await anyio.sleep(100)
                server.socket.send_text(message)
            assert line.statistics().dials == 1
            line.cancel()
            assert not any(isinstance(update, Stalled) for update in [update async for update in line.updates()])


async def test_a_state_that_repeats_what_the_messages_said_is_no_sign(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            job.progress(0.5, processed=5)
            await anyio.sleep(200)
            job.complete(RESULT)
            kinds = [type(update) async for update in line]
            assert kinds == [Resynced, Progress, Stalled, JobComplete]


async def test_time_without_a_path_is_no_silence(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", Answer(404))
        async with follow(server, policy=Policy(stall_limit=600)) as line:
            await line.wait_for(State.CONNECTED)
            await anyio.sleep(60)
            server.network.weather = Unreachable()
            server.socket.cut("rst")
            line.report_network(False)
            await anyio.sleep(4000)
            server.network.weather = Reach()
            line.report_network(True, "eth0")
            await line.wait_for(State.CONNECTED, timeout=5)
            await anyio.sleep(500)
            assert line.state is State.CONNECTED
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


async def test_a_silence_in_which_the_state_moved_is_no_stall(follow: Follow) -> None:
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            job.silent = True
            job.progress(0.5, processed=7)
            await anyio.sleep(130)
            job.silent = False
            job.complete(RESULT)
            updates = [update async for update in line]
        assert [type(update) for update in updates] == [Resynced, Progress, JobComplete]
        assert updates[0].missed == 1  # type: ignore[union-attr]
        assert (updates[1].fraction, updates[1].processed_count) == (None, 7)  # type: ignore[union-attr]


async def test_a_state_beyond_the_last_message_is_a_sign_at_a_reconnect(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        async with follow(server, policy=Policy(stall_limit=150)) as line:
            await line.wait_for(State.CONNECTED)
            job.progress(0.1, processed=1)
            await anyio.sleep(100)
            job.silent = True
            job.progress(0.7, processed=70)  # only the state shows it
            server.socket.cut("rst")
            await anyio.sleep(100)
            assert line.state is State.CONNECTED
            job.silent = False
            job.complete(RESULT)
            kinds = [type(update) async for update in line]
            assert kinds == [Resynced, Progress, Resynced, Progress, JobComplete]
