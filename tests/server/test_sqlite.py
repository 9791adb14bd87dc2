"""What only the SQLite engine can do wrong: files that are not its own, a full disk, one bad write among good ones."""

import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from towline.server import Hub, HubStorageError, read_events
from towline.server.log import _sqlite, _sqlite_writer
from towline.server.log._base import Change, Job
from towline.server.log._sqlite import SqliteLog

pytestmark = pytest.mark.anyio

JOB = Job(id="j", pipeline="p", owner="", epoch="e", created=1)


async def test_a_database_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(HubStorageError, match="not a hub's"):
        async with SqliteLog(path):
            pass


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear hub, " * 1000)
    with pytest.raises(HubStorageError, match="not a database"):
        async with SqliteLog(path):
            pass
    with pytest.raises(HubStorageError, match="not a database"):
        read_events(path, "j")


async def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with SqliteLog(path):
        pass
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(HubStorageError, match="newer version"):
        async with SqliteLog(path):
            pass


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HubStorageError):
        async with SqliteLog(tmp_path / "file" / "hub.db"):
            pass
    with pytest.raises(HubStorageError, match="no such database"):
        read_events(tmp_path / "none.db", "j")


async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed write leaves nothing, the others in its batch are told, and it works again when there is room."""
    writers: list[sqlite3.Connection] = []
    connect = _sqlite._connect

    def remember(path: Path, **options: Any) -> sqlite3.Connection:
        writers.append(connect(path, **options))
        return writers[-1]

    monkeypatch.setattr(_sqlite, "_connect", remember)
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(JOB, None)
        (pages,) = writers[1].execute("PRAGMA page_count").fetchone()
        writers[1].execute(f"PRAGMA max_page_count = {pages}")
        failures: list[str] = []

        async def write() -> None:
            with pytest.raises(HubStorageError) as failure:
                await log.append("j", "job_progress", b"x" * 100_000, 1)
            failures.append(failure.value.problem)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(write)
        assert failures == ["database or disk is full"] * 5
        kept = await log.job("j")
        assert isinstance(kept, Job)
        assert kept.seq == 0
        writers[1].execute("PRAGMA max_page_count = 1000000")
        event = await log.append("j", "job_progress", b"x" * 100_000, 1)
        assert event is not None
        assert event.seq == 1


async def test_a_bad_write_takes_back_only_itself(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(JOB, None)
        seqs: list[int] = []
        bad: list[Exception] = []

        async def write(total: int) -> None:
            try:
                event = await log.append("j", "job_progress", b"{}", 1, Change(total=total))
            except OverflowError as error:
                bad.append(error)
            else:
                assert event is not None
                seqs.append(event.seq)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(write, 2**70 if number % 3 == 0 else number)
        assert sorted(seqs) == list(range(1, 14))
        assert len(bad) == 7
        assert [event.seq for event in await log.read("j", 0, 100)] == list(range(1, 14))


async def test_a_closed_log_says_so(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "hub.db")
    with pytest.raises(HubStorageError, match="not open"):
        await log.append("j", "job_progress", b"{}", 1)
    async with log:
        await log.create(JOB, None)
    with pytest.raises(HubStorageError, match="closed"):
        await log.append("j", "job_progress", b"{}", 1)


async def test_reading_the_log_of_a_hub_at_work(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with SqliteLog(path) as log:
        await log.create(JOB, None)
        await log.append("j", "job_progress", b'{"a":1}', 3)
        [event] = read_events(path, "j")
        assert (event.seq, event.epoch, event.type, event.timestamp) == (1, "e", "job_progress", 3)
        assert event.payload == {"a": 1}
        assert read_events(path, "none") == []


def modes_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_only_its_owner_can_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with SqliteLog(tmp_path / "hub.db") as log:
            await log.create(JOB, None)
            modes = await anyio.to_thread.run_sync(modes_of, tmp_path)
    finally:
        os.umask(before)
    assert set(modes) >= {"hub.db", "hub.db-owner", "hub.db-shm", "hub.db-wal"}
    assert set(modes.values()) == {0o600}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody remove a file that is in use")
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("part", ["", "-wal", "-owner"])
async def test_a_file_that_is_removed_in_use_is_noticed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str, replaced: bool
) -> None:
    """Nothing is written that would be lost, and the file can be put back."""
    path = tmp_path / f"hub.db{part}"
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(JOB, None)
        await log.append("j", "job_progress", b"{}", 1)
        path.rename(tmp_path / "away")
        if replaced:
            path.write_bytes(b"")
        for _ in range(2):
            with pytest.raises(HubStorageError, match="removed or replaced"):
                await log.append("j", "job_progress", b"{}", 1)
            with pytest.raises(HubStorageError, match="removed or replaced"):
                await log.check()
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(path)]
        if replaced:
            path.unlink()
        (tmp_path / "away").rename(path)
        await log.check()
        event = await log.append("j", "job_progress", b"{}", 1)
        assert event is not None
        assert event.seq == 2


async def test_a_link_to_the_database_has_the_same_owner(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "hub.db")
    async with SqliteLog(tmp_path / "hub.db"):
        with pytest.raises(HubStorageError, match="this process uses the database already"):
            async with SqliteLog(tmp_path / "link.db"):
                pass


async def test_health_is_a_real_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes no more writes is full, however well it reads."""
    monkeypatch.setattr(_sqlite, "_CHECKED_FOR", 0)
    hub = Hub(tmp_path / "hub.db")
    writers: list[sqlite3.Connection] = []
    commit = _sqlite_writer._commit

    def remember(writer: sqlite3.Connection, *args: Any) -> None:
        writers.append(writer)
        commit(writer, *args)

    monkeypatch.setattr(_sqlite_writer, "_commit", remember)
    transport = httpx.ASGITransport(hub)
    async with hub, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/healthz")).status_code == 200
        writers[-1].execute("PRAGMA query_only = ON")
        assert (await client.get("/healthz")).status_code == 503
        writers[-1].execute("PRAGMA query_only = OFF")
        assert (await client.get("/healthz")).status_code == 200
