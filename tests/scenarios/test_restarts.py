"""Followers that end and resume on the same store, pauses, the background, a wake, and other network paths."""

from __future__ import annotations

import anyio
import pytest
from job_server import JobServer
from scenario import LONG, check, fractions, gaps, run

from towline import Connection, History, JobComplete, MemoryTokenStore, Resynced, State
from towline._updates import Paused
from towline.statemachine import replay

pytestmark = pytest.mark.anyio


async def test_another_connection_resumes_from_the_store(server: JobServer) -> None:
    store = MemoryTokenStore()
    first: list[object] = []
    async with server.follow(store=store) as connection:
        await connection.wait_for(State.CONNECTED)
        updates = connection.updates()
        for done in (1, 2):
            server.progress(done)
            await anyio.sleep(LONG)
            while server.log[-1]["done"] / 10 not in fractions(first):
                first.append(await anext(updates))
    server.progress(3)

    async def story(connection: Connection) -> None:
        await anyio.sleep(LONG)
        server.progress(4)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story, store=store)
    assert [type(update) for update in told if isinstance(update, JobComplete)] == [JobComplete]
    # The cursor is behind an update until the next one is asked for: a program that ends while it handles one gets
    # that again, and only an event stream goes on from there.
    resumed = {"events": [0.2, 0.3, 0.4], "websocket": [0.4], "lines": [0.4]}
    assert fractions(told) == resumed.get(server.way, [0.3, 0.4])
    # What was missed between the two is reported, also where the server's messages have no position.
    [resynced] = [update for update in told if isinstance(update, Resynced)]
    assert (resynced.kind, resynced.missed) == {
        "events": ("replay", 0),
        "websocket": ("unavailable", None),
        "lines": ("unavailable", None),
    }.get(server.way, ("snapshot", None))


async def test_an_end_on_record_needs_no_server(server: JobServer) -> None:
    store = MemoryTokenStore()

    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.end()

    connection, _ = await run(server, story, store=store)
    asked = len(server.requests)
    async with server.follow(store=store) as again:
        assert [update async for update in again] == [connection.outcome]
    assert len(server.requests) == asked


async def test_the_end_while_no_process_follows(server: JobServer) -> None:
    store = MemoryTokenStore()
    async with server.follow(store=store) as connection:
        await connection.wait_for(State.CONNECTED)
        server.progress(1)
        async for _ in connection:
            break
    server.progress(2)
    server.end()
    async with server.follow(store=store) as connection:
        told = [update async for update in connection]
    assert isinstance(told[-1], JobComplete)
    assert sum(isinstance(update, JobComplete) for update in told) == 1
    # The first one was in hand when the program ended.
    assert fractions(told) == ([0.1, 0.2] if server.way == "events" else [])
    # A stream whose events have ids shows all of them again, so none is missing.
    assert (gaps(told) == []) == (server.way not in ("websocket", "lines"))


async def test_a_job_paused_for_longer_than_an_outage_may_last(server: JobServer) -> None:
    """The server ends its stream during the pause again and again, and none of it is charged."""

    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.publish(pause="input")
        await anyio.sleep(LONG)
        for _ in range(30):
            server.cut("fin")
            await anyio.sleep(90)
            assert connection.state is State.CONNECTED
            assert connection.statistics().retries == 0
        server.progress(2)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)
    assert Paused(job=told[0].job, kind="input") in [replaced(update) for update in told]
    assert fractions(told) == [0.1, 0.2]


def replaced(update: object) -> object:
    """A pause without its position."""
    return Paused(job=update.job, kind=update.kind) if isinstance(update, Paused) else update


async def test_background_and_return(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        connection.background(grace=0)
        await connection.wait_for(State.BACKGROUNDED)
        await anyio.sleep(5)
        assert server.followers == 0
        asked = len(server.requests)
        server.progress(2)
        await anyio.sleep(3600)
        assert len(server.requests) == asked
        connection.foreground()
        await connection.wait_for(State.CONNECTED)
        server.progress(3)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)
    assert fractions(told)[-1] == 0.3


async def test_a_wake_finds_a_dead_link(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        dead = server.network.links
        for link in dead:
            link.hold()
        server.progress(2)
        began = anyio.current_time()
        connection.report_wake()
        await server.network.wait_dials(len(server.network.dials) + 1)
        assert anyio.current_time() - began < 30
        await anyio.sleep(LONG)
        server.progress(3)
        await anyio.sleep(LONG)
        server.end()
        for link in dead:
            link.cut()  # the server learns of it as late as it may

    _, told = await run(server, story)
    check(server, told, missed=True)
    assert fractions(told)[-1] == 0.3


async def test_a_wake_with_a_sound_link_loses_nothing(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        connection.report_wake()
        await anyio.sleep(LONG)
        server.progress(2)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story)
    check(server, told)
    assert fractions(told) == [0.1, 0.2]


async def test_a_path_that_is_lost_and_comes_back(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        connection.report_network(False)
        server.cut()
        server.progress(2)
        await anyio.sleep(1800)
        assert connection.state in (State.RECONNECTING, State.CONNECTING, State.CONNECTED)
        connection.report_network(True, "wifi")
        await anyio.sleep(LONG)
        server.progress(3)
        await anyio.sleep(LONG)
        connection.report_network(True, "cable")
        await anyio.sleep(LONG)
        server.progress(4)
        await anyio.sleep(LONG)
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)
    assert fractions(told)[-2:] == [0.3, 0.4]


async def test_a_link_that_was_silent_for_an_hour_after_an_outage_has_its_whole_budget(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        for done in (2, 3):
            server.cut()
            server.progress(done)
            await anyio.sleep(3600)
            assert connection.state is State.CONNECTED
        server.end()

    _, told = await run(server, story)
    check(server, told, missed=True)


async def test_a_recording_of_all_this_replays(server: JobServer) -> None:
    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.publish(pause="input")
        await anyio.sleep(LONG)
        server.cut()
        await anyio.sleep(100)
        server.end()

    connection, told = await run(server, story)
    check(server, told)
    written = connection.history().to_json()
    assert b'"job_paused"' in written
    assert replay(History.from_json(written)) is None
