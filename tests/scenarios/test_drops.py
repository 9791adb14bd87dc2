"""Links that end at each place: after each message, inside one, in order, and while the job ends."""

from __future__ import annotations

from typing import Literal

import anyio
import anyio.lowlevel
import pytest
from job_server import JobServer
from scenario import LONG, check, fractions, gaps, run

from towline import Connection, Exhausted, JobComplete, Policy, State

pytestmark = pytest.mark.anyio


async def test_a_job_without_a_fault(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        for done in range(1, 5):
            server.progress(done)
            await anyio.sleep(LONG)
        server.end()

    connection, told = await run(server, story)
    check(server, told)
    assert (fractions(told), gaps(told)) == ([0.1, 0.2, 0.3, 0.4], [])
    assert isinstance(connection.outcome, JobComplete)
    assert connection.outcome.result == "result"
    assert connection.statistics().retries == 0


@pytest.mark.parametrize("ending", ["fin", "rst", "torn"])
@pytest.mark.parametrize("after", range(5))
async def test_a_cut_at_each_message(server: JobServer, after: int, ending: Literal["fin", "rst", "torn"]) -> None:
    """The link ends after `after` messages, or inside the one that follows."""

    async def story(connection: Connection) -> None:
        for done in range(1, 5):
            if done == after + 1 and ending == "torn":
                server.tear_next()
            server.progress(done)
            await anyio.sleep(LONG)
            if done == after and ending != "torn":
                server.cut(ending)
                server.log.append({"log": "while away"})
                await anyio.sleep(LONG)
        if after == 4 and ending == "torn":
            server.tear_next()
        server.end()

    connection, told = await run(server, story)
    check(server, told, missed=True)
    assert connection.statistics().retries <= 1


async def test_many_cuts_while_updates_come(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        for done in range(1, 9):
            server.progress(done)
            await anyio.sleep(1)
            server.cut("fin" if done % 2 else "rst")
            await anyio.sleep(5)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)


async def test_a_stream_that_the_server_ends_in_order_is_no_end_of_the_job(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.finish_streams()
        await anyio.lowlevel.checkpoint()
        server.progress(2)
        await anyio.sleep(LONG)
        server.progress(3)
        await anyio.sleep(LONG)
        assert connection.outcome is None
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)
    assert fractions(told)[-1] == 0.3


async def test_the_end_while_the_link_is_away(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.cut()
        server.progress(2)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)


async def test_an_end_inside_which_the_link_breaks(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.tear_next()
        server.end()

    _, told = await run(server, story)
    check(server, told)


async def test_a_server_that_never_answers_ends_in_exhausted(server: JobServer) -> None:
    server.refuse(None)
    async with server.follow(policy=Policy()) as connection:
        with pytest.raises(Exhausted) as caught:
            async for _ in connection:
                pass
        assert (connection.state, caught.value.reason) == (State.EXHAUSTED, "budget")
        server.serve_again()
        server.end()
        connection.retry()
        assert isinstance(await connection.result(), JobComplete)


async def test_a_server_that_stops_answering_for_a_while(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.refuse(None)
        server.cut()
        server.progress(2)
        await anyio.sleep(60)
        server.cut()
        server.serve_again()
        server.progress(3)
        await anyio.sleep(60)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)
