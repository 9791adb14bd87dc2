"""Consumers slower than the job: nothing of its output is lost, and reading stops before too much waits."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from job_server import JobServer
from scenario import check, fractions, gaps

from towline import Connection, JobComplete, Limits, Output, Paused, Resynced, Stalled, State

pytestmark = pytest.mark.anyio

LINES = 800
#: Bytes of output that may wait.
BOUND = 2_000
LIMITS = Limits(max_waiting=BOUND)


async def collect(connection: Connection, told: list[Any], seconds: float) -> None:
    async for update in connection:
        told.append(update)
        await anyio.sleep(seconds)


def text(told: list[Any]) -> str:
    return "".join(update.value for update in told if isinstance(update, Output))


@pytest.mark.parametrize("server", ["websocket", "websocket+state", "events", "lines"], indirect=True)
async def test_the_output_is_whole_for_consumers_of_any_speed(server: JobServer) -> None:
    slow: list[Any] = []
    fast: list[Any] = []
    async with server.follow(limits=LIMITS) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(collect, connection, slow, 1.0)
        tasks.start_soon(collect, connection, fast, 0.0)
        await connection.wait_for(State.CONNECTED)
        for number in range(LINES):
            server.publish(log=f"line {number}\n")
            if number % 100 == 50:
                server.progress(number // 100 + 1)
                server.publish(pause="input")
            await anyio.sleep(0.01)
        await anyio.sleep(30)
        # The fast consumer is ahead of the slow one by what may wait, and by what one read brings.
        assert len(text(fast)) <= len(text(slow)) + BOUND + 200
        server.end()
    for told in (slow, fast):
        assert text(told) == "".join(f"line {number}\n" for number in range(LINES))
        assert fractions(told) == [number / 10 for number in range(1, 9)]
        assert len([update for update in told if isinstance(update, Paused)]) == 8
        assert isinstance(told[-1], JobComplete)
        assert gaps(told) == []
    assert connection.statistics().retries == 0


@pytest.mark.parametrize("server", ["websocket", "websocket+state", "events", "lines"], indirect=True)
async def test_a_consumer_that_stops_for_hours_costs_no_link_and_is_no_silence_of_the_job(server: JobServer) -> None:
    told: list[Any] = []
    async with server.follow(limits=LIMITS) as connection:
        await connection.wait_for(State.CONNECTED)
        subscription = connection.updates()
        for number in range(LINES):
            server.publish(log=f"line {number}\n")
            await anyio.sleep(0.01)
        await anyio.sleep(3 * 3600)
        server.end()
        told = [update async for update in subscription]
    assert text(told) == "".join(f"line {number}\n" for number in range(LINES))
    assert not [update for update in told if isinstance(update, Stalled)]
    assert connection.statistics().dials == 1
    check(server, told)


@pytest.mark.parametrize("server", ["events"], indirect=True)
async def test_a_link_that_is_cut_while_nothing_is_read_is_replayed(server: JobServer) -> None:
    told: list[Any] = []
    async with server.follow(limits=LIMITS) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(collect, connection, told, 0.5)
        await connection.wait_for(State.CONNECTED)
        for number in range(LINES):
            server.publish(log=f"line {number}\n")
            if number % 300 == 299:
                server.cut()
            await anyio.sleep(0.01)
        server.end()
    assert text(told) == "".join(f"line {number}\n" for number in range(LINES))
    check(server, told)


@pytest.mark.parametrize("server", ["websocket", "events", "lines"], indirect=True)
async def test_a_program_that_reads_no_updates_learns_the_end(server: JobServer) -> None:
    async with server.follow(limits=LIMITS) as connection:
        await connection.wait_for(State.CONNECTED)
        for number in range(LINES):
            server.publish(log=f"line {number}\n")
            await anyio.sleep(0.01)
        server.end()
        outcome = await connection.result()
        assert isinstance(outcome, JobComplete)
        assert outcome.result == "result"


@pytest.mark.parametrize("server", ["websocket", "events"], indirect=True)
async def test_a_consumer_that_is_dropped_without_a_word_stops_no_other(server: JobServer) -> None:
    async with server.follow(limits=LIMITS) as connection:
        await connection.wait_for(State.CONNECTED)
        forgotten, told = connection.updates(), connection.updates()
        for number in range(LINES):
            server.publish(log=f"line {number}\n")
            await anyio.sleep(0.01)
        server.end()
        with anyio.move_on_after(100) as waiting:
            seen = [await anext(told)]
            while True:
                seen.append(await anext(told))
        assert waiting.cancelled_caught, "the other one has stopped the reading"
        del forgotten
        seen += [update async for update in told]
    assert text(seen) == "".join(f"line {number}\n" for number in range(LINES))


async def publish(server: JobServer) -> None:
    for number in range(LINES):
        server.publish(log=f"line {number}\n")
        await anyio.sleep(0.01)


@pytest.mark.parametrize("server", ["websocket", "events", "lines"], indirect=True)
@pytest.mark.parametrize("is_read", [False, True])
async def test_an_iterator_that_its_own_task_keeps_does_not_stop_a_wait_for_the_end(
    server: JobServer, is_read: bool
) -> None:
    async with server.follow(limits=LIMITS) as connection:
        await connection.wait_for(State.CONNECTED)
        kept = connection.updates()
        if is_read:
            server.publish(log="first\n")
            assert isinstance(await anext(kept), Output)
        await publish(server)
        server.end()
        with anyio.move_on_after(3600) as waiting:
            await anyio.sleep(1)
            assert connection.outcome is None, "the iterator stops the reading until someone waits for the end"
            outcome = await connection.result()
        assert not waiting.cancelled_caught
        assert isinstance(outcome, JobComplete)
        lost, end = [update async for update in kept][-2:]
        assert isinstance(lost, Resynced)
        assert end == outcome
    assert connection.statistics().retries == 0


@pytest.mark.parametrize("server", ["websocket", "lines"], indirect=True)
@pytest.mark.parametrize("reads_for", [0, 3600])
async def test_an_iterator_whose_reader_has_ended_does_not_stop_a_wait_for_the_end(
    server: JobServer, reads_for: float
) -> None:
    """Whether the reader ends before too much waits, or while the engine waits for it."""

    async def read_one() -> None:
        assert isinstance(await anext(kept), Output)
        await anyio.sleep(reads_for)

    async with server.follow(limits=LIMITS) as connection, anyio.create_task_group() as tasks:
        await connection.wait_for(State.CONNECTED)
        kept = connection.updates()
        tasks.start_soon(read_one)
        server.publish(log="first\n")
        await publish(server)
        server.end()
        with anyio.move_on_after(7200) as waiting:
            await anyio.sleep(1)
            assert connection.outcome is None, "the iterator stops the reading until someone waits for the end"
            outcome = await connection.result()
        assert not waiting.cancelled_caught
        assert reads_for <= anyio.current_time() < reads_for + 30
        lost, end = [update async for update in kept][-2:]
        assert isinstance(lost, Resynced)
        assert end == outcome


@pytest.mark.parametrize("server", ["websocket"], indirect=True)
async def test_an_iterator_read_with_a_timeout_of_asyncio_does_not_stop_a_wait_for_the_end(server: JobServer) -> None:
    """Python 3.11 runs what `asyncio.wait_for` waits for in a task of its own."""
    if not isinstance(anyio.lowlevel.current_token().native_token, asyncio.AbstractEventLoop):
        pytest.skip("it is asyncio's")
    async with server.follow(limits=LIMITS) as connection:
        await connection.wait_for(State.CONNECTED)
        kept = connection.updates()
        server.publish(log="first\n")
        assert isinstance(await asyncio.wait_for(anext(kept), 1), Output)
        await publish(server)
        server.end()
        with anyio.fail_after(60):
            outcome = await connection.result()
        assert [update async for update in kept][-1] == outcome


@pytest.mark.parametrize("server", ["websocket+state", "events"], indirect=True)
async def test_an_iterator_goes_on_after_a_wait_for_the_end_that_was_given_up(server: JobServer) -> None:
    async with server.follow(limits=LIMITS) as connection:
        await connection.wait_for(State.CONNECTED)
        kept = connection.updates()
        await publish(server)
        with anyio.move_on_after(60) as waiting:
            await connection.result()
        assert waiting.cancelled_caught
        server.progress(7)
        told: list[Any] = []
        async for update in kept:
            told.append(update)
            if isinstance(update, Resynced):
                server.end()
    assert len(gaps(told)) == 1, "one report of what was dropped, and it came before the end"
    assert 0.7 in fractions(told)
    assert isinstance(told[-1], JobComplete)


@pytest.mark.parametrize("server", ["websocket", "events"], indirect=True)
async def test_a_wait_for_the_end_drops_nothing_of_a_slow_consumer_in_another_task(server: JobServer) -> None:
    slow: list[Any] = []
    async with server.follow(limits=LIMITS) as connection, anyio.create_task_group() as tasks:
        await connection.wait_for(State.CONNECTED)
        tasks.start_soon(collect, connection, slow, 30.0)
        tasks.start_soon(connection.result)
        await publish(server)
        server.end()
        assert isinstance(await connection.result(), JobComplete)
    assert text(slow) == "".join(f"line {number}\n" for number in range(LINES))


@pytest.mark.parametrize("server", ["websocket", "events"], indirect=True)
async def test_a_slow_consumer_with_a_task_for_each_read_loses_nothing_while_another_task_waits_for_the_end(
    server: JobServer,
) -> None:
    """As with `asyncio.wait_for(anext(updates), …)` on Python 3.11."""
    told: list[Any] = []

    async def read_in_tasks(connection: Connection) -> None:
        updates = connection.updates()

        async def read() -> None:
            told.append(await anext(updates))

        while not told or not isinstance(told[-1], JobComplete):
            async with anyio.create_task_group() as one:
                one.start_soon(read)
            await anyio.sleep(8)

    async with server.follow(limits=LIMITS) as connection, anyio.create_task_group() as tasks:
        await connection.wait_for(State.CONNECTED)
        tasks.start_soon(read_in_tasks, connection)
        tasks.start_soon(connection.result)
        await publish(server)
        server.end()
    assert text(told) == "".join(f"line {number}\n" for number in range(LINES))
    assert gaps(told) == []
