"""What servers answer instead of the job: 503 for a while, 401, 404 early and late, and a token of a provider."""

from __future__ import annotations

import anyio
import pytest
from job_server import JobServer, Reply
from scenario import LONG, check, fractions, run

from towline import Connection, Exhausted, JobCancelled, JobComplete, State

pytestmark = pytest.mark.anyio


async def test_503_for_a_while(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.refuse(503)
        server.cut()
        server.progress(2)
        await anyio.sleep(60)
        server.serve_again()
        server.progress(3)
        await anyio.sleep(60)
        server.end()

    connection, told = await run(server, story)
    check(server, told, missed=True)
    assert fractions(told)[0] == 0.1
    assert connection.statistics().dials > 3


async def test_503_at_first(server: JobServer) -> None:
    server.refuse(503)

    async def story(connection: Connection) -> None:
        await anyio.sleep(60)
        server.serve_again()
        await connection.wait_for(State.CONNECTED)
        server.progress(1)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story, first=False)
    check(server, told)
    assert fractions(told) == [0.1]


async def test_no_attempt_comes_before_the_moment_that_a_server_names(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.refuse(503, retry_after="120")
        server.cut()
        before = len(server.requests)
        await server.wait_requests(before + 1)
        asked = [(request.at, request.path) for request in server.requests[before:]]
        path = {"websocket": "/ws", "websocket+state": "/ws"}.get(server.way, f"/{server.way}")
        while path not in [where for _, where in asked]:
            await server.wait_requests(len(server.requests) + 1)
            asked = [(request.at, request.path) for request in server.requests[before:]]
        refused = asked[-1][0]
        server.serve_again()
        server.progress(2)
        count = len(server.requests)
        while path not in [request.path for request in server.requests[count:]]:
            await server.wait_requests(len(server.requests) + 1)
        assert server.requests[-1].at >= refused + 120
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)


async def test_a_token_that_expires_is_replaced_by_the_provider(server: JobServer) -> None:
    server.tokens = {"t1"}
    given: list[str] = []

    async def provider() -> str:
        given.append("asked")
        return sorted(server.tokens or {"none"})[-1]

    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.tokens = {"t2"}
        server.cut()
        server.progress(2)
        await anyio.sleep(LONG)
        server.progress(3)
        await anyio.sleep(LONG)
        server.end()

    connection, told = await run(server, story, token=provider)
    check(server, told, missed=True)
    assert {request.token for request in server.requests} <= {"t1", "t2"}
    assert server.requests[-1].token == "t2"
    assert connection.statistics().state is State.IDLE


async def test_a_fixed_token_that_is_rejected_ends_by_name(server: JobServer) -> None:
    server.tokens = {"t2"}
    async with server.follow(token="t1") as connection:
        with pytest.raises(Exhausted) as caught:
            await connection.result()
        assert caught.value.reason == "auth"
        server.end()
        connection.connect(token="t2")
        assert isinstance(await connection.result(), JobComplete)


async def test_404_before_the_job_was_seen_may_be_too_early(server: JobServer) -> None:
    """Where the state call says the same, there is no such job."""
    server.refuse(404)
    if server.way in ("websocket+state", "lines"):
        async with server.follow() as connection:
            with pytest.raises(Exhausted) as caught:
                await connection.result()
            assert caught.value.reason == "gone"
        return

    async def story(connection: Connection) -> None:
        await anyio.sleep(8)
        assert connection.state in (State.CONNECTING, State.RECONNECTING)
        server.serve_again()
        await connection.wait_for(State.CONNECTED)
        server.progress(1)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story, first=False)
    check(server, told)


async def test_404_after_the_job_was_seen_is_gone(server: JobServer) -> None:
    async with server.follow() as connection:
        await connection.wait_for(State.CONNECTED)
        server.progress(1)
        await anyio.sleep(LONG)
        server.refuse(404)
        server.cut("fin")
        began = anyio.current_time()
        with pytest.raises(Exhausted) as caught:
            await connection.result()
        # A job may come back where only a link and no state call knew it: there the budget decides.
        known = server.way in ("websocket+state", "lines", "poll")
        assert caught.value.reason == ("gone" if known else "budget")
        assert not known or anyio.current_time() - began < 60


@pytest.mark.parametrize("answer", ["too_late", "unknown"])
async def test_a_cancel_that_changes_nothing(server: JobServer, answer: str) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.cancel_answer = answer
        assert await connection.cancel_job() == answer
        server.end()

    _, told = await run(server, story)
    check(server, told)


async def test_an_accepted_cancel_is_no_end_until_the_job_says_so(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        assert await connection.cancel_job() == "accepted"
        await anyio.sleep(LONG)
        assert connection.outcome is None
        server.end("cancelled")

    connection, told = await run(server, story)
    check(server, told, JobCancelled)
    assert isinstance(connection.outcome, JobCancelled)
    assert not connection.outcome.assumed


async def test_an_accepted_cancel_and_then_404_is_an_assumed_end(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        assert await connection.cancel_job() == "accepted"
        server.refuse(404)
        server.cut()

    connection, told = await run(server, story)
    check(server, told, JobCancelled, missed=True)
    assert isinstance(connection.outcome, JobCancelled)
    assert connection.outcome.assumed


async def test_too_late_is_followed_by_the_end_though_no_link_is_open(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.refusal = lambda asked: None if asked.path in ("/cancel", "/state") else Reply(503)
        server.cut()
        server.end()
        server.cancel_answer = "too_late"
        await anyio.sleep(LONG)
        assert await connection.cancel_job() == "too_late"
        await anyio.sleep(1)
        if server.protocol().promise == "end exact" and server.way != "poll":
            assert isinstance(connection.outcome, JobComplete)
        server.serve_again()

    _, told = await run(server, story)
    check(server, told, missed=True)
