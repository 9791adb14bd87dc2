"""What bounds each wait: servers that answer and never say anything that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from job_server import JobServer, LateEvents, Reply, each
from scenario import LONG

from towline import Exhausted, JobComplete, Policy, Progress, Stalled, State
from towline._facts import Means
from towline.protocols import A2ATask, EventStream, Messages

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("way", ["poll", "websocket", "events"])
async def test_an_outage_during_a_pause_ends(way: Any) -> None:
    """A poll that is answered 503 has opened, and so has a socket that is closed at once."""
    async with JobServer(way) as server:
        server.publish(pause="input")
        async with server.follow(policy=Policy(stall_after=(100_000.0,))) as connection:
            await connection.wait_for(State.CONNECTED)
            server.publish(pause="input")
            await anyio.sleep(LONG)
            server.refuse(503)
            server.cut()
            with anyio.fail_after(3600), pytest.raises(Exhausted) as caught:
                await connection.result()
        assert caught.value.reason == "budget"


def refusing(what: Any) -> Callable[[Any], Any]:
    """What `each` means where the state says this of an empty log."""
    return lambda message: each(message) if message else Means(what)


@pytest.mark.parametrize("what", ["gone", "refused", "auth", "lost", "source", "cursor", "ended"])
@pytest.mark.parametrize(
    ("way", "followed"),
    [
        ("websocket", lambda f: Messages("ws://hub/ws", f, state="/state")),
        ("events", lambda f: LateEvents("http://hub/events", f, state="/state")),
        ("events", lambda f: EventStream("http://hub/events", f, state="/state")),
    ],
)
async def test_whatever_a_state_call_means_a_link_that_works_stays(way: Any, followed: Any, what: Any) -> None:
    """In syncing it goes on without a state; in step, a silence is reported."""
    async with JobServer(way) as server:
        async with server.follow(followed(refusing(what))) as connection:
            await connection.wait_for(State.CONNECTED, timeout=30)
            updates = aiter(connection.updates())
            with anyio.fail_after(150):
                while not isinstance(await anext(updates), Stalled):
                    pass
            server.progress(1)
            server.end()
            assert isinstance(await connection.result(), JobComplete)
        assert [asked.path for asked in server.requests if asked.path != "/state"] == [
            f"/{'ws' if way == 'websocket' else way}"
        ]


async def test_an_a2a_agent_that_streams_nothing_and_knows_no_task() -> None:
    """The subscription stays open, and a stream may say more than a call that does not know the task (-32001)."""
    unknown = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32001, "message": "no such task"}}
    async with JobServer("events") as server:
        server.refusal = lambda asked: Reply(200, unknown) if len(server.requests) > 1 else None
        async with server.follow(A2ATask("http://hub/events", "t1")) as connection:
            await connection.wait_for(State.CONNECTED, timeout=30)


async def test_a_poll_that_shows_something_new_is_a_sign_of_the_job_each_time() -> None:
    async with JobServer("poll") as server:
        server.refusal = lambda asked: Reply(200, {"done": len(server.requests) % 10}, {"retry-after": "80"})
        async with server.follow(policy=Policy(stall_limit=130)) as connection:
            await anyio.sleep(1800)
            assert connection.state is State.CONNECTED
            server.refusal = lambda asked: Reply(200, {"end": 1})
            told = [type(update) async for update in connection]
        assert told == [*[Progress] * (len(server.requests) - 1), JobComplete]
