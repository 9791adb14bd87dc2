"""The writer of a SQLite file, alone: what shares a transaction, what an error takes back, and how it ends."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from towline.server import HubStorageError
from towline.server.log import _sqlite_writer
from towline.server.log._base import Event
from towline.server.log._sqlite_writer import Writer, Written

pytestmark = pytest.mark.anyio


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    made = sqlite3.connect(tmp_path / "log.db", isolation_level=None, check_same_thread=False)
    made.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY)")
    return made


def keep(number: int) -> Callable[[sqlite3.Connection], int]:
    def apply(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO kept VALUES (?)", (number,))
        return number

    return apply


def kept(tmp_path: Path) -> list[int]:
    reader = sqlite3.connect(tmp_path / "log.db")
    try:
        return [number for (number,) in reader.execute("SELECT number FROM kept")]
    finally:
        reader.close()


@asynccontextmanager
async def running(
    connection: sqlite3.Connection,
    check: Callable[[], None] = lambda: None,
    tell: Callable[[Sequence[Event]], None] = lambda events: None,
) -> AsyncIterator[Writer]:
    writer = Writer(connection, Path("log.db"), check, tell)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        yield writer
        writer.close()


async def test_what_comes_during_a_transaction_shares_the_next(
    connection: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins: list[str] = []
    connection.set_trace_callback(lambda text: begins.append(text) if text.startswith("BEGIN") else None)
    pauses: list[float] = []
    monkeypatch.setattr(_sqlite_writer.time, "sleep", pauses.append)
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(10)

    async with running(connection) as writer, anyio.create_task_group() as tasks:
        tasks.start_soon(writer.write, hold)
        await anyio.to_thread.run_sync(entered.wait)
        for number in range(10):
            tasks.start_soon(writer.write, keep(number))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert kept(tmp_path) == list(range(10))
    assert len(begins) == 2
    assert not pauses


async def test_only_after_a_shared_transaction_is_there_a_pause(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits for each of its writes is not slowed."""
    pauses: list[float] = []
    monkeypatch.setattr(_sqlite_writer.time, "sleep", pauses.append)
    monkeypatch.setattr(_sqlite_writer, "_BETWEEN", 3600.0)
    go_on = threading.Event()
    async with running(connection) as writer:
        for number in range(5):
            assert await writer.write(keep(number)) == number
        assert not pauses
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.write, lambda _: go_on.wait(10))
            for number in range(5, 8):
                tasks.start_soon(writer.write, keep(number))
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        await writer.write(keep(8))
        assert len(pauses) >= 1
        await writer.write(keep(9))
        before = len(pauses)
        await writer.write(keep(10))
        assert len(pauses) == before


async def test_a_change_that_fails_takes_back_only_itself(connection: sqlite3.Connection, tmp_path: Path) -> None:
    async with running(connection) as writer:
        results: list[object] = []

        async def write(apply: Callable[[sqlite3.Connection], int]) -> None:
            try:
                results.append(await writer.write(apply))
            except (HubStorageError, ZeroDivisionError) as error:
                results.append(type(error))

        async with anyio.create_task_group() as tasks:
            for apply in (keep(1), keep(1), lambda _: 1 // 0, keep(2)):
                tasks.start_soon(write, apply)
    assert sorted(results, key=str) == [1, 2, ZeroDivisionError, HubStorageError]
    assert kept(tmp_path) == [1, 2]


async def test_where_the_check_refuses_nothing_is_written(connection: sqlite3.Connection, tmp_path: Path) -> None:
    problem: list[HubStorageError] = [HubStorageError("not there")]

    def check() -> None:
        if problem:
            raise problem[0]

    async with running(connection, check) as writer:
        with pytest.raises(HubStorageError, match="not there"):
            await writer.write(keep(1))
        problem.clear()
        await writer.write(keep(2))
    assert kept(tmp_path) == [2]


async def test_readers_hear_of_an_event_before_its_write_returns(connection: sqlite3.Connection) -> None:
    told: list[int] = []

    def apply(_: sqlite3.Connection) -> Written:
        return Written([Event("a", "count", "e", seq, "job_progress", 0, b"{}") for seq in (1, 2)])

    async with running(connection, tell=lambda events: told.extend(event.seq for event in events)) as writer:
        assert len(await writer.write(apply)) == 2
        assert told == [1, 2]


async def test_all_that_was_handed_in_is_answered_at_the_end(connection: sqlite3.Connection, tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        async with running(connection) as writer:
            for number in range(600):  # more than share one transaction
                tasks.start_soon(writer.write, keep(number))
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(HubStorageError, match="the log is closed"):
            await writer.write(keep(1000))
    assert kept(tmp_path) == list(range(600))
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


async def test_a_scope_that_is_cancelled_does_not_stop_it(connection: sqlite3.Connection, tmp_path: Path) -> None:
    writer = Writer(connection, Path("log.db"), lambda: None, lambda events: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await writer.write(keep(1)) == 1
        writer.close()
    assert kept(tmp_path) == [1]


def test_a_task_that_is_stopped_by_force_leaves_no_thread(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """asyncio cancels every task of a loop that ends early; a thread that waited on would keep the process."""
    before = set(threading.enumerate())

    async def main() -> None:
        writer = Writer(connection, Path("log.db"), lambda: None, lambda events: None)
        running = asyncio.create_task(writer.run())
        await writer.write(keep(1))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(HubStorageError, match="the log is closed"):
            await writer.write(keep(2))

    asyncio.run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert kept(tmp_path) == [1]
